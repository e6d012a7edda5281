"""Read one file out of a multipart/form-data body, chunk by chunk, without keeping any of it."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import Invalid

_BROKEN = "body is not valid multipart/form-data"


class FilePart:
    """Feeds on the body's chunks and gives the bytes of the part named `file`."""

    def __init__(self, content_type: str) -> None:
        """Begin with the request's Content-Type; raises Invalid when it is not multipart."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Invalid("body must be multipart/form-data with a part named file")
        self.original_name: str | None = None
        """What the client calls its file; None as long as the part has not come."""
        self._in_file = False
        self._at_end = False
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._content = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header_name,
                    "on_header_value": self._add_to_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_content,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Invalid(_BROKEN) from error

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk of the body; give the file's bytes in it. Raises Invalid."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Invalid(_BROKEN) from error
        content = bytes(self._content)
        self._content.clear()
        return content

    def finish(self) -> str:
        """End the body and give the file's original name. Raises Invalid if no file came whole."""
        if not self._at_end:
            raise Invalid(_BROKEN)
        if self.original_name is None:
            raise Invalid("body has no part named file")
        return self.original_name

    def _begin_part(self) -> None:
        self._in_file = False
        self._disposition = b""

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = b""
        self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"file":
            return
        if self.original_name is not None:
            raise Invalid("body has more than one part named file")
        self._in_file = True
        self.original_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._content += data[start:end]

    def _end(self) -> None:
        self._at_end = True
