"""The documents are in plain English: short sentences, standard terms, links that lead somewhere.

`python tests/test_docs.py` prints, for README.md and each page of docs/: lines, sentences, mean and largest number of
words in a sentence, and the banned words. Headings, code blocks and tables have no sentences. Inline code is one word.
"""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MAX_MEAN, MAX_WORDS, MAX_LINES = 14, 30, 150

BANNED = re.compile(
    r"\ba training\b(?! (?:run|set|step|sample)\b)|\btold of\b|\bset aside\b|\bto the bit\b|\brooms?\b"
    r"|(?<!ground )\btruths?\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<!\bal\.)(?<!\be\.g\.)(?<=[.?!])[\"')*]*\s+")


def without_code(page: Path) -> str:
    """Read a page and remove code blocks; inline code becomes the word `x`."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?:^|(?<=\n\n))(?: {4}.*\n|\n(?= {4}))+", "", text)
    return re.sub(r"`[^`]+`", "`x`", text)


def sentences(page: Path) -> list[str]:
    """Return the sentences of a page's paragraphs and list items."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", without_code(page))
    text = re.sub(r"^ *(?:\||#|!).*$", "", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text)
    blocks = [" ".join(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", block).split()) for block in blocks]
    return [sentence for block in blocks for sentence in SENTENCE_END.split(block) if re.search(r"\w", sentence)]


def num_words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def anchors(page: Path) -> set[str]:
    """Return the anchors that Markdown viewers make of a page's headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_sentences_are_short_and_use_standard_terms():
    counts = []
    for page in PAGES:
        assert not BANNED.findall(without_code(page)), page.name
        for sentence in sentences(page):
            counts.append(num_words(sentence))
            assert counts[-1] <= MAX_WORDS, f"{page.name}: {counts[-1]} words: {sentence}"
    assert sum(counts) / len(counts) <= MAX_MEAN


def test_pages_are_short():
    for page in PAGES[1:]:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, page.name


def test_links_lead_to_a_file_and_a_heading():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
            name, _, anchor = target.partition("#")
            if "://" in name:
                continue
            file = page.parent / name if name else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_tests_that_the_pages_name_exist():
    for page in PAGES:
        for file in re.findall(r"tests/\w+\.py", page.read_text(encoding="utf-8")):
            assert (REPOSITORY / file).exists(), f"{page.name}: {file}"


def test_recipes_for_contributors_name_what_is_there():
    page = (REPOSITORY / "docs" / "contributing.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py)`, `([\w.]+)`", page)
    assert places
    for file, name in places:
        assert name.rpartition(".")[2] in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}: {name}"


def main() -> None:
    """Print the figures of each page and of all pages together."""
    print(f"{'page':28}{'lines':>6}{'sentences':>10}{'mean':>7}{'longest':>8}  banned words")
    total = []
    for page in PAGES:
        counts = [num_words(sentence) for sentence in sentences(page)]
        total += counts
        banned = ", ".join(BANNED.findall(without_code(page)))
        lines = len(page.read_text(encoding="utf-8").splitlines())
        print(f"{page.name:28}{lines:6}{len(counts):10}{sum(counts) / len(counts):7.1f}{max(counts):8}  {banned}")
    print(f"{'all':28}{'':6}{len(total):10}{sum(total) / len(total):7.1f}{max(total):8}")


if __name__ == "__main__":
    main()
