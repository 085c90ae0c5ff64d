/* NVML's ABI as far as the adapter uses it, over cards that a text file describes; when it's replaced, they are different at once.
 *
 * NVML_STATE names the file; a line a card, 18 fields: state power_mw energy_mj temperature utilisation memory_total_mib
 * memory_used_mib clock memory_clock throttle_bits ecc mig pid pid_mib pid2 pid2_mib xid xid_count
 * state: 0 sound, 1 lost, 2 its power can't be read: the call never returns. A pid of 0 is none.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { MOST = 8 };
typedef unsigned long long u64;
typedef struct { int index; } *device_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { u64 total, unused, used; } memory_t;
typedef struct { unsigned gpu, memory; } load_t;
typedef struct { unsigned pid; u64 held; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { device_t device; u64 kind, data; unsigned gpu_instance, compute_instance; } event_t;
typedef struct {
  unsigned state, power, temperature, load, clock, memory_clock, mig, pid[2], xid, xid_count;
  u64 energy, total, used, throttle, ecc, held[2];
} card_t;

static struct { int index; } handles[MOST] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static unsigned xids_told[MOST];

static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

/* The file is replaced, never written in place: it's read anew when it is another one. */
static int cards(card_t *found) {
  static card_t known[MOST];
  static int count = -1;
  static struct stat before;
  struct stat now;
  const char *path = getenv("NVML_STATE");
  if (!path || stat(path, &now)) return -1;
  pthread_mutex_lock(&reading);
  if (count < 0 || now.st_ino != before.st_ino || now.st_mtim.tv_nsec != before.st_mtim.tv_nsec) {
    FILE *file = fopen(path, "r");
    count = 0, before = now;
    for (card_t c; file && count < MOST && fscanf(file, "%u %u %llu %u %u %llu %llu %u %u %llu %llu %u %u %llu %u %llu %u %u",
         &c.state, &c.power, &c.energy, &c.temperature, &c.load, &c.total, &c.used, &c.clock, &c.memory_clock, &c.throttle,
         &c.ecc, &c.mig, &c.pid[0], &c.held[0], &c.pid[1], &c.held[1], &c.xid, &c.xid_count) == 18; )
      known[count++] = c;
    if (file) fclose(file);
  }
  memcpy(found, known, sizeof known);
  int there = count;
  pthread_mutex_unlock(&reading);
  return there;
}

static int look(device_t device, card_t *card) {
  card_t all[MOST];
  int count = cards(all);
  if (!device || device->index >= count) return INVALID_ARGUMENT;
  *card = all[device->index];
  return card->state == 1 ? GPU_IS_LOST : SUCCESS;
}

#define ASK(card) card_t card; int status = look(device, &card); if (status) return status

int nvmlInitWithFlags(unsigned flags) { card_t all[MOST]; (void)flags; return cards(all) < 0 ? UNKNOWN : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int status) { return status == GPU_IS_LOST ? "GPU is lost" : "an error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "580.65.06"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
  card_t all[MOST];
  int found = cards(all);
  *count = found < 0 ? 0 : (unsigned)found;
  return found < 0 ? UNKNOWN : SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
  card_t card;
  *device = (device_t)&handles[index % MOST];
  return look(*device, &card);
}
int nvmlDeviceGetIndex(device_t device, unsigned *index) { *index = (unsigned)device->index; return SUCCESS; }
int nvmlDeviceGetName(device_t device, char *text, unsigned length) {
  ASK(card);
  snprintf(text, length, "NVIDIA A100-SXM4-80GB");
  return SUCCESS;
}
int nvmlDeviceGetUUID(device_t device, char *text, unsigned length) {
  ASK(card);
  snprintf(text, length, "GPU-0000000%d-1111-2222-3333-444444444444", device->index);
  return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci) {
  ASK(card);
  memset(pci, 0, sizeof *pci);
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", 7 + device->index);
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
  ASK(card);
  memory->total = card.total << 20, memory->used = card.used << 20, memory->unused = memory->total - memory->used;
  return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(device_t device, load_t *load) {
  ASK(card);
  if (card.mig) return NOT_SUPPORTED;
  load->gpu = card.load, load->memory = card.load / 2;
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts) {
  ASK(card);
  while (card.state == 2) {
    usleep(20000);
    if (look(device, &card)) break;
  }
  *milliwatts = card.power;
  return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(device_t device, u64 *millijoules) {
  ASK(card);
  *millijoules = card.energy;
  return card.energy ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned *milliwatts) { ASK(card); *milliwatts = 400000; return SUCCESS; }
int nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *celsius) {
  ASK(card);
  *celsius = card.temperature;
  return sensor ? INVALID_ARGUMENT : SUCCESS;
}
int nvmlDeviceGetClockInfo(device_t device, unsigned kind, unsigned *mhz) {
  ASK(card);
  *mhz = kind == 2 ? card.memory_clock : card.clock;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device, u64 *bits) { ASK(card); *bits = card.throttle; return SUCCESS; }
int nvmlDeviceGetTotalEccErrors(device_t device, unsigned kind, unsigned counter, u64 *count) {
  ASK(card);
  *count = card.ecc;
  return kind == 1 && counter == 0 ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *room, process_t *found) {
  unsigned count = 0;
  ASK(card);
  for (int i = 0; i < 2; i++) count += card.pid[i] != 0;
  if (count > *room) return *room = count, INSUFFICIENT_SIZE;
  *room = 0;
  for (int i = 0; i < 2; i++)
    if (card.pid[i]) memset(&found[*room], 0, sizeof *found), found[*room].pid = card.pid[i], found[(*room)++].held = card.held[i] << 20;
  return SUCCESS;
}

int nvmlEventSetCreate(void **set) { *set = handles; return SUCCESS; }
int nvmlDeviceRegisterEvents(device_t device, u64 kinds, void *set) { ASK(card); (void)set; return kinds == 8 ? SUCCESS : NOT_SUPPORTED; }
int nvmlEventSetWait_v2(void *set, event_t *event, unsigned timeout) {
  card_t all[MOST];
  int count = cards(all);
  (void)set, (void)timeout;
  for (int i = 0; i < count; i++)
    if (xids_told[i] < all[i].xid_count) {
      xids_told[i]++;
      memset(event, 0, sizeof *event);
      event->device = (device_t)&handles[i], event->kind = 8, event->data = all[i].xid;
      return SUCCESS;
    }
  return TIMEOUT;
}
