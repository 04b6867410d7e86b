"""A Jupyter server's connection to a gateway that passes every frame on as it is.

jupyter_server's own speaks the protocol without subprotocol to a gateway, takes the first binary frame
for UTF-8 and dies of it; and it drops the connection on a message above 10 MiB. This one agrees with
the gateway on what the browser asked for, and forwards bytes as bytes:

    jupyter lab --gateway-url=… \
        --ServerApp.kernel_websocket_connection_class=callboard.jupyter.GatewayConnection
"""

from jupyter_server.gateway.connections import GatewayWebSocketConnection
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.utils import url_path_join
from tornado.httpclient import HTTPRequest
from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClosedError, websocket_connect
from traitlets import Unicode

# Longest message taken from the gateway: a large figure or table. It is held in memory once.
MESSAGE_BYTES_MAX = 256 << 20


class GatewayConnection(GatewayWebSocketConnection):
    """Forwards frames between a browser and a gateway that speaks `v1.kernel.websocket.jupyter.org`."""

    kernel_ws_protocol = Unicode("v1.kernel.websocket.jupyter.org", allow_none=True, config=True)

    async def connect(self):
        """Connects with the subprotocol that the browser got."""
        self.ws = None
        gateway = GatewayClient.instance()
        url = url_path_join(gateway.ws_url, gateway.kernels_endpoint, self.kernel_id, "channels")
        request = HTTPRequest(f"{url}?session_id={self.session_id}", **gateway.load_connection_args())
        chosen = self.websocket_handler.selected_subprotocol
        self.ws_future = websocket_connect(
            request, subprotocols=[chosen] if chosen else None, max_message_size=MESSAGE_BYTES_MAX
        )
        self.ws_future.add_done_callback(self._connection_done)
        IOLoop.current().add_future(self.ws_future, lambda _: self._read_messages())

    def _connection_done(self, future):
        super()._connection_done(future)
        if self.ws is not None:
            self.ws.read_message = self._forward_bytes(self.ws.read_message)

    def _forward_bytes(self, read):
        """A reader that passes binary frames on itself and returns the next one of text."""

        async def read_text():
            while isinstance(message := await read(), bytes):
                try:
                    await self.websocket_handler.write_message(message, binary=True)
                except WebSocketClosedError:
                    self.log.debug("the browser has left; a message is dropped")
            return message

        return read_text

    def _write_message(self, message):
        if self.ws is not None and not self.disconnected:
            try:
                self.ws.write_message(message, binary=isinstance(message, bytes))
            except WebSocketClosedError:
                self.log.warning("the gateway has left; a message is dropped")
