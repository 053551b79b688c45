"""The controller: pure tensors (layers x experts). Only `callback.py` knows Lightning."""
