"""The contract for people: one page without script and without anything from elsewhere."""

import json
import re
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_KEYS = {"ApiKey": "X-API-Key", "RegistrationToken": "X-Registration-Token"}
_MARKS = ((r"\*\*(.+?)\*\*", r"<strong>\1</strong>"), (r"`(.+?)`", r"<code>\1</code>"))

Json = dict[str, Any]


@router.get("/docs")
def show_contract(request: Request) -> HTMLResponse:
    """Show every call and every body."""
    return HTMLResponse(page_of(request.app.openapi()), headers=_HEADERS)


def page_of(schema: Json) -> str:
    """Write the page for a schema."""
    environment = Environment(
        loader=PackageLoader("orchestrator", "pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["paragraphs"] = _paragraphs
    calls = [
        _call(schema, path, method, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    models = [_model(name, model) for name, model in schema["components"]["schemas"].items()]
    return environment.get_template("docs.html").render(schema=schema, calls=calls, models=models)


def _paragraphs(text: str) -> list[Markup]:
    shown = []
    for paragraph in text.strip().split("\n\n"):
        markup = str(escape(paragraph))
        for mark, element in _MARKS:
            markup = re.sub(mark, element, markup)
        # Escaped above: what is left of markup is ours.
        shown.append(Markup(markup))  # noqa: S704
    return shown


def _call(schema: Json, path: str, method: str, operation: Json) -> Json:
    keys = [" with ".join(_KEYS[name] for name in one) for one in operation.get("security", [])]
    return {
        "id": operation["operationId"],
        "tag": operation["tags"][0],
        "method": method.upper(),
        "path": path,
        "summary": operation["description"].partition("\n")[0],
        "description": operation["description"],
        "key": " or ".join(keys) or "none",
        "parameters": [
            {**one, "form": one.get("description") or _form(one["schema"])}
            for one in operation.get("parameters", [])
        ],
        "body": _body(schema, operation.get("requestBody", {})),
        "answers": [
            _answer(schema, status, answer) for status, answer in operation["responses"].items()
        ],
    }


def _answer(schema: Json, status: str, answer: Json) -> Json:
    if "$ref" in answer:
        # All errors have one body, which is shown once.
        described = schema["components"]["responses"][_name(answer["$ref"])]
        return {"status": status, "description": described["description"], "body": None}
    description = answer["description"].replace("Successful Response", "")
    return {"status": status, "description": description, "body": _body(schema, answer)}


def _body(schema: Json, holder: Json) -> Json | None:
    content = holder.get("content", {})
    if not content:
        return None
    reference = _reference(next(iter(content.values())).get("schema", {}))
    if reference is None:
        return {"model": None, "example": None}
    model = schema["components"]["schemas"][_name(reference)]
    return {"model": _name(reference), "example": _example(model)}


def _reference(form: Json) -> str | None:
    choices = [form, form.get("items", {}), *form.get("anyOf", [])]
    return next((str(one["$ref"]) for one in choices if "$ref" in one), None)


def _model(name: str, model: Json) -> Json:
    required = model.get("required", [])
    return {
        "name": name,
        "description": model.get("description", ""),
        "form": _form(model) if "enum" in model else None,
        "fields": [
            {"name": field, "form": _form(form), "is_required": field in required}
            for field, form in model.get("properties", {}).items()
        ],
        "example": _example(model),
    }


def _example(model: Json) -> str | None:
    examples = model.get("examples")
    return json.dumps(examples[0], indent=2, ensure_ascii=False) if examples else None


def _form(form: Json) -> str:
    if "$ref" in form:
        return _name(form["$ref"])
    if "anyOf" in form:
        return " or ".join(_form(one) for one in form["anyOf"])
    if "enum" in form:
        return "one of " + ", ".join(form["enum"])
    kind = str(form.get("const") or form.get("type", "anything"))
    if kind == "array":
        return f"list of {_form(form.get('items', {}))}"
    limits = {"minimum": "from", "maximum": "to", "maxLength": "at most", "format": "as"}
    said = [f"{word} {form[limit]}" for limit, word in limits.items() if limit in form]
    if "default" in form:
        said.append(f"default {json.dumps(form['default'])}")
    return ", ".join([kind, *said])


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]
