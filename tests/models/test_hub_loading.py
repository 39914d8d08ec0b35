"""Without an answer from the hub, its client works offline in the block, and only there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants, is_offline_mode

from nlora.models import hub
from nlora.models.hub import offline_without_hub


class Answering(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    """A server on this machine in the place of the hub, which the client may use."""
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    hub._hub_answers.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    hub._hub_answers.cache_clear()


def test_any_answer_of_the_hub_leaves_the_client_online(server: HTTPServer) -> None:
    with offline_without_hub():
        assert not is_offline_mode()


def test_a_hub_that_does_not_answer_is_left_out_until_the_end_of_the_block(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.server_close()  # its port is free: connections are refused
    with offline_without_hub():
        assert is_offline_mode()
    assert not is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with offline_without_hub():
        assert is_offline_mode()
    assert is_offline_mode(), "the user's own choice stays"
