// The page's own script: language, copying, and drawing the charts once Vega is there. Tables need none of it.
(function () {
  "use strict";
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let language = "en";

  function initial() {
    const asked = location.hash.slice(1);
    if (asked === "en" || asked === "zh") return asked;
    const set = root.dataset.language;
    if (set === "en" || set === "zh") return set;
    return (navigator.languages || [navigator.language]).some((name, i) => i === 0 && /^zh/i.test(name)) ? "zh" : "en";
  }

  function show(next) {
    language = next;
    root.lang = next === "zh" ? "zh-CN" : "en";
    root.dataset.shown = next;
    for (const filter of document.querySelectorAll("input.filter")) filter.placeholder = filter.ariaLabel = filter.dataset[next];
  }

  const button = document.getElementById("language");
  button.hidden = false;
  button.addEventListener("click", () => {
    show(language === "en" ? "zh" : "en");
    draw();
  });
  window.addEventListener("hashchange", () => {
    const asked = location.hash.slice(1);
    if ((asked === "en" || asked === "zh") && asked !== language) {
      show(asked);
      draw();
    }
  });
  show(initial());

  for (const copy of document.querySelectorAll("button.copy")) {
    if (!navigator.clipboard) continue;
    copy.hidden = false;
    const words = copy.innerHTML;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(copy.parentElement.querySelector("code").textContent);
      copy.textContent = read("flagperf-charts").copied[language];
      setTimeout(() => (copy.innerHTML = words), 1500);
    });
  }
  // Rows of the table beside a filter stay if they hold every word that is typed.
  for (const filter of document.querySelectorAll("input.filter")) {
    const lines = [...filter.parentElement.querySelectorAll("tbody tr")];
    filter.hidden = lines.length < 8;
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const line of lines) line.hidden = !words.every((word) => line.textContent.toLowerCase().includes(word));
    });
  }
  document.querySelector("details.json").addEventListener("toggle", () => {
    document.getElementById("json").textContent = JSON.stringify(read("flagperf-data"), null, 1);
  });

  // Columns to rows, as Vega wants them.
  function rows(columns) {
    const names = Object.keys(columns);
    return (columns[names[0]] || []).map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  }

  // Puts words in place of keys: "§axis.memory|MiB" becomes "memory, MiB".
  function worded(value, texts) {
    if (Array.isArray(value)) return value.map((inner) => worded(inner, texts));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, worded(inner, texts)]));
    }
    if (typeof value !== "string" || value[0] !== "§") return value;
    const [key, unit] = value.slice(1).split("|");
    return (texts[key] || key) + (unit ? ` (${unit})` : "");
  }

  function config() {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const font = getComputedStyle(document.body).fontFamily;
    const [ink, quiet, line] = [colour("--ink"), colour("--quiet"), colour("--line")];
    return {
      background: "transparent",
      font,
      padding: 2,
      view: { stroke: null },
      range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`--c${i}`)) },
      axis: {
        labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
        labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, titlePadding: 8, gridOpacity: 0.7, tickSize: 4,
      },
      axisX: { grid: false, labelFlush: true, labelOverlap: true, tickCount: 6 },
      axisY: { domain: false, ticks: false, tickCount: 5 },
      rule: { color: ink },
    };
  }

  let round = 0;
  async function draw() {
    const mine = ++round;
    const { charts, texts } = read("flagperf-charts");
    for (const chart of charts) {
      if (mine !== round) return; // the language or the colours changed meanwhile
      const place = document.getElementById(chart.id);
      const failed = place.parentElement.querySelector(".failed");
      try {
        const spec = worded(chart.spec, texts[language]);
        spec.description = chart.alt[language];
        spec.datasets = Object.fromEntries(Object.entries(chart.data).map(([name, columns]) => [name, rows(columns)]));
        await window.vegaEmbed(place, spec, { ast: true, renderer: "svg", actions: false, config: config(), tooltip: { theme: dark.matches ? "dark" : "light" } });
        failed.hidden = true;
      } catch (error) {
        console.error(chart.id, error);
        place.replaceChildren();
        failed.hidden = false;
      }
    }
    if (mine === round) root.dataset.drawn = String(charts.length);
  }
  dark.addEventListener("change", draw);
  window.addEventListener("load", draw);
})();
