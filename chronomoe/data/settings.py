"""Settings of the `data` group."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.settings import setting


@dataclass(kw_only=True)
class DataSettings:
    source: str = setting(choices=["stdlib", "text", "huggingface", "domains"])
    """Where documents come from."""
    seq_len: int = setting(128, low=8)
    """Tokens a training sequence (the model sees `seq_len`, one more is read for the last target)."""
    batch_size: int = setting(16, low=1)
    """Sequences per optimizer step, over all micro-batches and all devices."""
    tokenizer: str | None = setting(None)
    """A folder or hub name with a `tokenizer.json`; null trains a byte-level BPE on the training split."""
    vocab_size: int = setting(4096, low=257)
    """Entries of the trained byte-level BPE (256 bytes and the end-of-document token included)."""
    val_fraction: float = setting(0.05, low=0.001, high=0.5)
    """Share of the documents held out for validation; a document is never split between the two."""
    val_sequences: int = setting(256, low=1)
    """Sequences of one evaluation, spread evenly over the validation split."""
    max_documents: int | None = setting(None, low=2)
    """Read at most this many documents; null reads all."""
    num_workers: int = setting(0, low=0)
    """Loader processes; 0 is fastest for a memory-mapped corpus."""
    cache_dir: str = setting("~/.cache/chronomoe")
    """Where tokenizers and packed corpora are kept, named by the hash of their content."""
    path: str | None = setting(None)
    """`source=text`: a file, a folder (searched recursively) or a glob; .txt, .md, .py, .jsonl."""
    text_field: str = setting("text")
    """Name of the field that holds the text in .jsonl files and Hugging Face data sets."""
    name: str | None = setting(None)
    """`source=huggingface`: the data set's hub name or a local folder of it."""
    subset: str | None = setting(None)
    """`source=huggingface`: the configuration (subset) name."""
    split: str = setting("train")
    """`source=huggingface`: the split to read."""
    streaming: bool = setting(False)
    """`source=huggingface`: read without downloading the whole set first; needs `max_documents`."""
    num_domains: int = setting(4, low=2, high=256)
    """`source=domains`: labelled domains, equally many documents of each."""
    separability: float = setting(1.0, low=0.0, high=1.0)
    """`source=domains`: share of the words whose continuation depends on the domain; 0: labels say nothing."""
    private_words: float = setting(0.0, low=0.0, high=1.0)
    """`source=domains`: share of a domain's words that no other domain has; 0: a word alone says nothing."""
    num_words: int = setting(64, low=16)
    """`source=domains`: words of one domain, all equally frequent."""
    document_words: int = setting(128, low=8)
    """`source=domains`: length of every document."""
    domains_seed: int = setting(0, low=0)
    """`source=domains`: of the language and of its documents."""
