"""What may come in on Streamlit's own socket: its messages, and nothing else.

To text, or to bytes that are not one of its messages, Streamlit answers with a traceback on the terminal. They end here
instead, with a reason, and Streamlit sees a page that was closed.
"""

from google.protobuf.message import DecodeError
from starlette.types import Message, Receive, Send
from streamlit.proto.BackMsg_pb2 import BackMsg

from moe_core.dashboard.address import TURNS
from moe_core.dashboard.gate import REFUSED
from moe_core.dashboard.links import readable
from moe_core.dashboard.log import note
from moe_core.dashboard.messages import Refused

TO_LOOK = ("rerun_script", "stop_script", "app_heartbeat", "load_git_info")  # what the page of one who only looks sends
LONGEST = 1024 * 1024  # bytes of a message of one who only looks: a link and what fields of a page hold


def checked_message(message: Message, role: str) -> Message:
    """A message, its link made readable. Refused if no page, or none of this role, sends such a message."""
    data = message.get("bytes")
    if data is None:
        raise Refused("wanted one of Streamlit's messages, got text")
    if role != TURNS and len(data) > LONGEST:
        raise Refused(f"wanted at most {LONGEST // 1024:,} KB, got {len(data) // 1024:,} KB")
    parsed = BackMsg()
    try:
        parsed.ParseFromString(data)
    except DecodeError:
        raise Refused(f"wanted one of Streamlit's messages, got {len(data):,} bytes that are not one") from None
    kind = parsed.WhichOneof("type") or "an empty one"
    if kind.startswith(("an empty", "debug")):
        raise Refused(f"wanted one of Streamlit's messages, got {kind}")
    if role != TURNS and kind not in TO_LOOK:  # clear_cache, for one, is for all pages
        raise Refused(f"{REFUSED} Got {kind}.")
    if kind == "rerun_script" and parsed.rerun_script.query_string:
        parsed.rerun_script.query_string = readable(parsed.rerun_script.query_string)
        return {**message, "bytes": parsed.SerializeToString()}
    return message


def checked(receive: Receive, send: Send, role: str) -> tuple[Receive, Send]:
    """receive and send of a socket that the first bad message closes."""
    closed = False

    async def hear() -> Message:
        nonlocal closed
        message = await receive()
        if message["type"] != "websocket.receive":
            return message
        try:
            return checked_message(message, role)
        except Refused as error:
            reason = str(error)
        closed = True
        note("message refused", reason)
        await send({"type": "websocket.close", "code": 1002, "reason": reason})
        return {"type": "websocket.disconnect", "code": 1002, "reason": reason}

    async def say(message: Message) -> None:
        nonlocal closed
        try:
            if not closed:
                await send(message)
        except OSError:  # the page has gone, which Streamlit hears from its next message
            closed = True

    return hear, say
