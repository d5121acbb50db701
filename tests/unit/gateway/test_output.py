from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.core.errors import InvalidRequest, Unprocessable
from tokenhub.gateway.output import OutputFormat, Schema, unfenced


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("**bold** and *it* and `code` and __u__", "bold and it and code and u"),
        ("# Title\n## Sub\ntext", "Title\nSub\ntext"),
        ("- one\n* two\n  + three", "one\ntwo\nthree"),
        ("2 * 3 * 4 ** 2", "2 * 3 * 4 ** 2"),
        ("**a *b* c**", "a b c"),
        ("an * alone, ** two, a `", "an * alone, ** two, a `"),
        ("*open\nclose*", "*open\nclose*"),
        ("", ""),
    ],
)
def test_text_has_no_marks(text, plain):
    assert OutputFormat(type="text").apply(text) == plain


@given(st.text(alphabet="ab *_`#-\n", max_size=80))
def test_plain_text_loses_marks_only(text):
    plain = OutputFormat(type="text").apply(text)
    assert [char for char in plain if char in "ab"] == [char for char in text if char in "ab"]
    assert len(plain) <= len(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>hmm</think>\n\n42", "42"),
        ("a<think>x</think> b<think>y</think>c", "ab" + "c"),
        ("42<think>cut off", "42"),
        ("<think>", ""),
        ("a</think>b", "a</think>b"),
        ("<think>a<think>b</think>c", "c"),
        ("none", "none"),
    ],
)
def test_thinking_is_removed(text, kept):
    assert OutputFormat(strip_think=True).apply(text) == kept


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ('```json\n{"a":1}\n```', '{"a":1}'),
        ('Here:\n```JSON\n{"a":1}\n```\nDone.', '{"a":1}'),
        ('```\n{"a":1}\n```', '{"a":1}'),
        ('```js\nx\n```\n```json\n{"a":1}\n```', '{"a":1}'),
        (' {"a":1} ', '{"a":1}'),
        ('```json\n{"a":1}', '```json\n{"a":1}'),
        ("```json\n```", ""),
    ],
)
def test_a_fence_is_opened(text, inner):
    assert unfenced(text) == inner
    assert OutputFormat(type="json").apply(text) == inner


def test_a_cut_counts_four_characters_a_token_and_spares_json():
    assert OutputFormat(max_tokens=2).apply("123456789") == "12345678..."
    assert OutputFormat(max_tokens=2).apply("12345678") == "12345678"
    assert OutputFormat(type="json", max_tokens=1).apply('{"a":12345}') == '{"a":12345}'


NASTY = [
    "`a ", "**a ", "*a* ", "**a*", "*", "*\n", "<think>", "<think></think> ", "```json\n",
    "```json   ", "```a", "# ", "#", "- ", "__", "`", "\n \t ", "a\n```\n",
]  # fmt: skip


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
@pytest.mark.parametrize("piece", NASTY)
@pytest.mark.parametrize("kind", ["json", "markdown", "text", "xml"])
def test_no_text_takes_more_than_linear_time(piece, kind):
    text = piece * (1_000_000 // len(piece))
    OutputFormat(type=kind, strip_think=True).apply(text)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def faults(schema, value):
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(Unprocessable) as caught:
        Schema(schema, "output_schema").check(text)
    assert caught.value.status == 422
    assert caught.value.code == "output_schema_validation_failed"
    return caught.value


def test_an_answer_that_fits_passes():
    Schema(PERSON, "s").check('```json\n{"name":"Ada","tags":["x"]}\n```')
    Schema(True, "s").check("3")


def test_a_fault_says_where_and_by_which_rule():
    error = faults(PERSON, {"name": "Ada", "tags": ["x", 3]})
    [fault] = error.extra["faults"]
    assert fault["at"] == "/tags/1"
    assert fault["rule"] == "properties/tags/items/type"
    assert "/tags/1" in error.message


def test_all_faults_are_listed_up_to_ten():
    assert len(faults(PERSON, {"tags": [1] * 50}).extra["faults"]) == 10
    assert {one["rule"] for one in faults(PERSON, {"nam": 1}).extra["faults"]} == {
        "required",
        "additionalProperties",
    }


@pytest.mark.parametrize("text", ["no JSON", "", '{"name":', "[" * 100_000, "NaN"])
def test_what_is_not_json_is_said_to_be_none(text):
    assert "not JSON" in faults(PERSON, text).message


@pytest.mark.parametrize(
    "schema", [3, "x", [], {"type": 3}, {"type": "nonsense"}, {"$ref": "#/no"}]
)
def test_a_schema_that_is_none_is_refused_by_its_name(schema):
    with pytest.raises(InvalidRequest) as caught:
        Schema(schema, "request.output_schema")
    assert caught.value.param == "request.output_schema"


@pytest.mark.parametrize("scheme", ["http", "https", "file"])
def test_nothing_a_schema_refers_to_is_fetched(scheme, tmp_path):
    target = tmp_path / "schema.json"
    target.write_text("{}")
    came = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)

        def accept():
            try:
                listener.accept()[0].close()
                came.append(True)
            except OSError:
                pass

        watcher = threading.Thread(target=accept)
        watcher.start()
        port = listener.getsockname()[1]
        url = target.as_uri() if scheme == "file" else f"{scheme}://127.0.0.1:{port}/schema.json"
        with pytest.raises(InvalidRequest):
            Schema({"properties": {"a": {"$ref": url}}}, "s").check('{"a":1}')
        watcher.join()
    assert came == []


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "(x+x+)+y", "^(.*a){20}$"])
def test_a_catastrophic_pattern_cannot_hang(pattern):
    schema = Schema({"type": "string", "pattern": pattern}, "s")
    with contextlib.suppress(Unprocessable):
        schema.check(json.dumps("a" * 50_000 + "!" + "x" * 50_000))


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?=a)b", "(?<=a)b", "(" * 300, "a{1000}{1000}{1000}"]
)
def test_a_pattern_that_would_need_backtracking_is_refused(pattern):
    with pytest.raises(InvalidRequest):
        Schema({"pattern": pattern}, "s")


def nested(depth, key="a"):
    return json.loads(f'{{"{key}":' * depth + "1" + "}" * depth)


def doubling(steps):
    """Each part refers to the next one twice."""
    parts = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(steps)}
    return {"$ref": "#/$defs/d0", "$defs": parts | {f"d{steps}": {"type": "string"}}}


def anchored(steps):
    schema = json.loads(json.dumps(doubling(steps)).replace('"#/$defs/', '"#'))
    for name, part in schema["$defs"].items():
        part["$anchor"] = name
    return schema


@pytest.mark.parametrize("schema", [doubling(40), anchored(40)], ids=["pointers", "anchors"])
def test_a_schema_that_stands_for_too_much_is_refused(schema):
    with pytest.raises(InvalidRequest, match="stand for more than 10000 parts"):
        Schema(schema, "s")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "other.json"}}},
        {"$defs": {"x": {"$id": "http://x/", "type": "string"}}},
        {"$ref": "#nowhere"},
        {"$ref": "#/$defs/9"},
        {"allOf": [True], "$ref": "#/allOf/x"},
    ],
)
def test_a_reference_that_leads_nowhere_we_go_is_refused(schema):
    with pytest.raises(InvalidRequest):
        Schema(schema, "s")


def test_shared_parts_and_trees_are_fine():
    faults(doubling(8), 3)
    tree = {"properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
    Schema(tree, "s").check(json.dumps(nested(50, "child") | {"child": {}}))
    faults(tree, {"child": {"child": {"x": 1}}})
    pair = {"properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}, "additionalProperties": False}
    Schema(pair, "s").check(json.dumps({"l": {"l": {}}, "r": {"r": {"l": {}}}}))
    names = {"$defs": {"a/b": {"type": "string"}}, "items": {"$ref": "#/$defs/a~1b"}}
    assert faults(names, [3]).extra["faults"][0]["at"] == "/0"


@pytest.mark.timeout(30)  # a watchdog: it takes a moment, or minutes
def test_an_answer_whose_check_would_explode_is_a_422():
    schema = {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
    assert "nested too deeply" in faults(schema, nested(40)).message
    Schema(schema, "s").check(json.dumps(nested(8) | {"a": {}}))


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
def test_a_schema_that_is_only_itself_ends(schema):
    Schema(schema, "s").check("1")


def test_a_schema_of_great_depth_is_refused_not_a_crash():
    deep = {}
    for _ in range(100_000):
        deep = {"not": deep}
    with pytest.raises(InvalidRequest, match="ecursion"):
        Schema(deep, "s")
    while deep:  # or freeing it would recurse as deeply
        deep = deep["not"]
