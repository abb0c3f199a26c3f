"""The OpenAPI document as its reader has it, to hold answers and examples to."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol

import jsonschema_rs
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from queue_actor.settings import Settings
from web.openapi import Route
from web.openapi import document as make_document

OF_ANY_ANSWER = {"content-type", "content-length", "date", "connection", "x-content-type-options", "transfer-encoding"}
"""Headers that need not be described: those of HTTP itself, and one for browsers."""


class Answer(Protocol):
    """What is looked at of an answer; names of headers are in lower case."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Described:
    """The document of a server with some settings, and its schemas, ready to hold values to."""

    def __init__(self, routes: list[Route], settings: Settings) -> None:
        self.routes = routes
        # As a client has it: through JSON.
        self.document = json.loads(json.dumps(make_document(routes, settings)))
        resource = Resource.from_contents(self.document, default_specification=DRAFT202012)
        self._registry: Any = Registry().with_resource("urn:openapi", resource)
        # For the answers of all tests there is a quicker one.
        self._quick = jsonschema_rs.Registry([("urn:openapi", self.document)])
        self._validators: dict[int, jsonschema_rs.Draft202012Validator] = {}  # by what they validate
        # Paths without variables go first, as they do for the router.
        self._patterns = [
            (path, re.compile(re.sub(r"{\w+}", "[A-Za-z0-9_.:-]+", path)))
            for path in sorted(self.document["paths"], key=lambda path: path.count("{"))
        ]

    def errors(self, schema: dict[str, Any], value: Any, *, partial: bool = False) -> list[str]:
        """What is wrong with a value; of a partial one, beside what is missing."""
        errors = self._validator(schema).iter_errors(value)
        return [f"{error.json_path}: {error.message}" for error in errors if not (partial and is_missing(error))]

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        return Draft202012Validator(
            absolute(schema), registry=self._registry, format_checker=Draft202012Validator.FORMAT_CHECKER
        )

    def check(self, method: str, target: str, answer: Answer) -> None:
        """Assert that an answer is one of those that its operation has; if the request is for one."""
        found = self._find(method, target.partition("?")[0])
        if found is None:
            return
        promised = dict(self.answers(found))
        assert str(answer.status) in promised, (method, target, answer)
        told = promised[str(answer.status)]
        required = {name: self._is_always_there(header) for name, header in told["headers"].items()}
        missing = {name for name, always in required.items() if always and name.lower() not in answer.headers}
        assert not missing, (method, target, missing)
        untold = answer.headers.keys() - {name.lower() for name in required} - OF_ANY_ANSWER
        assert not untold, (method, target, untold)
        content = told.get("content", {}).get(answer.headers.get("content-type"))
        if answer.body and answer.headers["content-type"].endswith("json"):
            assert content is not None, (method, target, answer)
            if id(content) not in self._validators:
                schema = content.get("x-line-schema", content["schema"])
                self._validators[id(content)] = jsonschema_rs.Draft202012Validator(
                    absolute(schema), registry=self._quick, validate_formats=True
                )
            validator = self._validators[id(content)]
            documents = answer.body.splitlines() if "x-line-schema" in content else [answer.body]
            errors = [error.message for each in documents for error in validator.iter_errors(json.loads(each))]
            assert not errors, (method, target, errors)

    def _is_always_there(self, header: dict[str, str]) -> bool:
        found: dict[str, Any] = self.document["components"]["headers"][header["$ref"].rsplit("/", 1)[1]]
        return bool(found["required"])

    def _find(self, method: str, path: str) -> dict[str, Any] | None:
        """The operation of a request; what the path names has to be plain, as it has to be in a path of OpenAPI."""
        for template, pattern in self._patterns:
            if pattern.fullmatch(path):
                found: dict[str, Any] | None = self.document["paths"][template].get(method.lower())
                return found
        return None

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and operation."""
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), path, operation

    def answers(self, operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Status and answer, references followed."""
        for status, answer in operation["responses"].items():
            if "$ref" in answer:
                yield status, self.document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
            else:
                yield status, answer


def absolute(schema: dict[str, Any]) -> Any:
    """A schema that may stand outside the document."""
    return json.loads(json.dumps(schema).replace('"#/', '"urn:openapi#/'))


def is_missing(error: ValidationError) -> bool:
    """Whether all that is wrong is that something is not there, under one reading at least."""
    if error.validator != "anyOf":
        return error.validator == "required"
    readings: dict[Any, list[ValidationError]] = defaultdict(list)
    for cause in error.context or ():
        readings[cause.schema_path[0]].append(cause)
    return any(all(map(is_missing, causes)) for causes in readings.values())


@cache
def described(routes: tuple[Route, ...], settings: Settings) -> Described:
    """The same for all servers that are alike."""
    return Described(list(routes), settings)
