"""What a corpus is made of: a text, the domain it is labelled with, and where it was taken from."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    text: str
    """Never blank; written to the packed corpus as it stands."""
    domain: str
    """The kind of text ("code", "prose", "tables", or a data set's name): the label of specialisation studies."""
    origin: str
    """The file or record it was taken from. Documents of one origin stay on one side of the train/validation split."""
