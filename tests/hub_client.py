"""The Hub's client of this process, pointed at the server of hub_server.py."""

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session

from rlhf.runs import hub_errors


def use_server(server, monkeypatch: pytest.MonkeyPatch, cache) -> None:
    """Sets what HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET, HF_HUB_CACHE and HF_TOKEN set before an import."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr(hub_errors, "WAITS", (0, 0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    close_session()
