"""Whether the Hugging Face Hub can be reached."""

from __future__ import annotations

from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url

NO_NETWORK = {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}
"""Names of the errors of a connection that was never made; their classes depend on the HTTP library
of the Hub's client.
"""


def reachable(repository: str, *, revision: str | None = None, **options: Any) -> bool:
    """Whether a connection is made at all, by one request for a model's config.

    The client's own look-up of a file tries again for half a minute where there is no network. An
    answer of any kind, such as that there is no such model, is left to it.
    """
    url = hf_hub_url(repository, "config.json", revision=revision)
    try:
        get_hf_file_metadata(url, token=options.get("token"))
    except Exception as error:
        return NO_NETWORK.isdisjoint(kind.__name__ for kind in type(error).__mro__)
    return True
