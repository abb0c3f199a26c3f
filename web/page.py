"""The page at `/docs`: the OpenAPI document for people to read. Pure; everything is escaped, nothing is a script."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

HOST = "http://127.0.0.1:8080"
METHODS = ("post", "get", "put", "patch", "delete")
"""Those that are shown; `head` is as `get`."""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/docs/style.css">
</head>
<body>
<header>
<h1>{title}</h1>
<p>{summary} {description}</p>
<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>
</header>
<nav aria-label="Routes">
{nav}
</nav>
<main>
{main}
</main>
</body>
</html>
"""


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document, in HTML."""
    info = document["info"]
    return _TEMPLATE.format(
        title=escape(info["title"]),
        summary=_prose(info["summary"]),
        description=_prose(info["description"]),
        nav="\n".join(_nav(document)),
        main="\n".join([*_groups(document), *_schemas(document), *_problems(document)]),
    )


def _of_tag(document: dict[str, Any], tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods and tag in methods[method]["tags"]:
                yield method.upper(), path, methods[method]


def _nav(document: dict[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        links = (
            f'<li><a href="#{escape(operation["operationId"])}"><code><b>{method}</b> {_breaking(path)}</code></a></li>'
            for method, path, operation in _of_tag(document, tag["name"])
        )
        yield f'<h2><a href="#{escape(tag["name"])}">{escape(tag["name"])}</a></h2>\n<ul>{"".join(links)}</ul>'
    yield '<h2><a href="#schemas">schemas</a></h2>\n<h2><a href="#problems">problems</a></h2>'


def _groups(document: dict[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f'<h2 id="{escape(tag["name"])}">{escape(tag["name"])}</h2>\n<p>{_prose(tag["description"])}</p>'
        for method, path, operation in _of_tag(document, tag["name"]):
            yield "\n".join(_section(document, method, path, operation))


def _section(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f'<section id="{name}">'
    yield f'<h3><a href="#{name}"><code><b>{method}</b> {_breaking(path)}</code></a></h3>'
    yield f"<p><strong>{_prose(operation['summary'])}.</strong> {_prose(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        rows = (
            (
                f"<code>{escape(parameter['name'])}</code>",
                parameter["in"],
                _kind(parameter["schema"]),
                _prose(parameter["description"]),
            )
            for parameter in parameters
        )
        yield _table(("parameter", "in", "value", "meaning"), rows)
    for content_type, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, <code>{escape(content_type)}</code>: {_kind(body.get('x-line-schema', body['schema']))}</p>"
    yield f'<pre tabindex="0"><code>{escape(_curl(method, path, operation))}</code></pre>'
    yield from _answers(document, operation)
    yield "</section>"


def _answers(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    rows = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            shared = document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
            codes = " ".join(f'<a href="#problem-{escape(code)}">{escape(code)}</a>' for code in shared["x-retryable"])
            rows.append((status, codes))
        else:
            kinds = (
                f"<code>{escape(content_type)}</code> {_kind(body.get('x-line-schema', body['schema']))}"
                for content_type, body in answer.get("content", {}).items()
            )
            headers = ", ".join(f"<code>{escape(name)}</code>" for name in answer["headers"])
            inside = ", ".join(
                f'<a href="#problem-{escape(code)}">{escape(code)}</a>' for code in answer.get("x-item-codes", [])
            )
            parts = [*kinds, f"Headers: {headers}", *([f"Errors inside: {inside}"] if inside else [])]
            rows.append((status, "<br>".join(parts)))
    yield _table(("status", "answer"), rows)
    for content_type, body in operation["responses"].get("200", {}).get("content", {}).items():
        if "example" in body:
            example = body["example"]
            text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
            yield (
                f"<details><summary>Example of <code>{escape(content_type)}</code></summary>"
                f'<pre tabindex="0"><code>{escape(text)}</code></pre></details>'
            )


def _curl(method: str, path: str, operation: dict[str, Any]) -> str:
    """A command to copy."""
    parameters = operation.get("parameters", [])
    for parameter in parameters:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
    words = ["curl", "-s"]
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
        words.append("-N")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if method != ("POST" if body else "GET"):
        words += ["-X", method]
    words.append(shlex.quote(HOST + path))
    for parameter in parameters:
        if parameter["in"] == "header" and parameter["name"] == "Queue-Lease-Token":
            words += ["-H", '"Queue-Lease-Token: $token"']
    command = " ".join(words)
    if body:
        command += f" \\\n  -d {shlex.quote(json.dumps(body['example'], ensure_ascii=False))}"
    return command


def _schemas(document: dict[str, Any]) -> Iterator[str]:
    yield '<h2 id="schemas">schemas</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<section id="schema-{escape(name)}"><h3><a href="#schema-{escape(name)}">{escape(name)}</a></h3>'
        if "description" in schema:
            yield f"<p>{_prose(schema['description'])}</p>"
        if "properties" in schema:
            required = schema.get("required", [])
            rows = (
                (
                    f"<code>{escape(field)}</code>",
                    _kind(kind) + (" <em>needed</em>" if field in required else ""),
                )
                for field, kind in schema["properties"].items()
            )
            yield _table(("field", "value"), rows)
        else:
            yield f"<p>{_kind(schema)}</p>"
        yield "</section>"


def _problems(document: dict[str, Any]) -> Iterator[str]:
    yield '<h2 id="problems">problems</h2>'
    rows = (
        (
            f'<code id="problem-{escape(code)}">{escape(code)}</code>',
            str(kind["status"]),
            escape(kind["retryable"]),
            _prose(kind["when"]),
        )
        for code, kind in document["x-problems"].items()
    )
    yield _table(("code", "status", "retryable", "when"), rows)


def _kind(schema: dict[str, Any]) -> str:
    """What a value is, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#schema-{name}">{name}</a>' + _default(schema)
    if "anyOf" in schema and "properties" not in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"]) + _default(schema)
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"]) + _default(schema)
    words = escape(str(schema.get("type", schema.get("description", "any JSON"))))
    if "items" in schema:
        words += f" of {_kind(schema['items'])}"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    bounds = [
        *([f"{'from' if 'minimum' in schema else 'above'} {low}"] if low is not None else []),
        *([f"to {high}"] if high is not None else []),
        *([f"of {schema.get('minLength', 0)} to {schema['maxLength']} characters"] if "maxLength" in schema else []),
        *([f"{schema.get('minItems', 0)} to {schema['maxItems']} of them"] if "maxItems" in schema else []),
        *([schema["format"]] if "format" in schema else []),
    ]
    return " ".join([words, *map(escape, bounds)]) + _default(schema)


def _default(schema: dict[str, Any]) -> str:
    return f", else <code>{escape(json.dumps(schema['default']))}</code>" if schema.get("default") is not None else ""


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _prose(text: str) -> str:
    """A sentence, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _breaking(path: str) -> str:
    """A path that may be broken before each of its slashes."""
    return escape(path).replace("/", "<wbr>/")
