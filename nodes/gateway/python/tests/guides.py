"""The code blocks of docs/guides, so that tests run what users read."""

import re

from cluster import ROOT


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document below docs/ in one language, in order."""
    text = (ROOT / "docs" / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
