"""Tiles of an image: how a function's shapes follow its input's (`growth`), and which tiles give it all (`plan`)."""
