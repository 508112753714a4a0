"""A file a promise, all fed from the cases of `convjax.testing`. Run by `make test`, against the installed wheel."""
