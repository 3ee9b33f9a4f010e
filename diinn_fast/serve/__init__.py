"""Pictures over HTTP, zoomed without end: IIIF Image API 3.0 and a page that shows them.

- ``iiif``: what a URL asks for, and info.json: numbers in, numbers out;
- ``picture``: one picture as pixels of any region at any size, by the network or by bicubic;
- ``gallery``: the pictures by name, those dropped onto the page among them;
- ``tiles``: encoded answers, made once and kept within a bound, ``disk`` those kept as files;
- ``app``: the routes;
- ``http``: the application behind a socket;
- ``page``: the viewer, files served as they are.

Needs the extra ``serve`` (``pip install 'diinn_fast[serve]'``); `diinn-fast serve` starts it.
"""

from __future__ import annotations

from diinn_fast.serve.app import make_app
from diinn_fast.serve.disk import DiskCache
from diinn_fast.serve.picture import Picture

__all__ = ["DiskCache", "Picture", "make_app"]
