"""Fuzzing of what comes with a checkpoint, and of parameter files, by the rules of `test_hostile_fuzz`.

What is generated is read or refused with the documented error; what would take more than a process may is run in one.
"""

import json
import multiprocessing
import random
import re
import resource
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from mmprm_lib import convert_config, models, parameters, steps, untrusted
from tests import test_convert
from tests.conftest import REPOSITORY
from tests.doubles import problem
from tests.test_hostile_fuzz import PIECES, VALUES, Bounded, changed, count, text_of, tiers

MEMORY = 2 * 2**30  # bytes that loading a checkpoint of a megabyte may take beyond what the process has


def raw_of(rng, value):
    """A JSON value as bytes, sometimes with some of them changed."""
    raw = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice([0, 0, 0, 0, 1, 3]) if raw else 0):
        raw[rng.randrange(len(raw))] = rng.choice(b'"\\{}[],:0e-\0\xff\xed ')
    return bytes(raw)


def several(rng, value, most):
    for _ in range(rng.randint(0, most)):
        value = changed(rng, value)
    return value


# -- parameters

DECLARED = parameters.declared_in(
    "n: int = 3  # [1, 5] count\nrate: float = 0.5  # [0, 1] share\nmode: str = 'a'  # {a, b}\nrest: dict = {}\n"
    "ns: list = [1, 2]  # [1, 9] sizes\nnames: list = ['a']  # {a, b}\non: bool = False\nany: list = []"
)
LINES = [
    "n: 3", "rate: 1.0e-3", "rate: 1e-5", "mode: a", "rest: {x: 1, y: {z: [1, 2]}}", "ns: [1, 2]", "names: [a, b]",
    "on: true", "on: yes", "any: [1, a, null]", "rate: 1" + "0" * 400, "n: 0x1f", "n: 0o17", "n: 1:30", "rate: .inf",
    "rate: .nan", "n: !!int 'x'", "n: !!int ''", "rate: !!float ''", "on: !!bool maybe", "mode: !!str 5", "? [a]\n: 1",
    "n: !!timestamp x", "n: 2020-13-45", "n: 2020-01-01", "rest: !!set {a, b}", "any: !!binary '*'", "any: !!omap [1]",
    "n: !!python/name:os.system", "<<: {n: 1}", "<<: 1", "rest: {<<: [1]}", "n: &x 1", "mode: *x", "- 1", "---", "...",
    "%YAML 9.9", "%TAG ! x", "mode: |\n  a\n b", "mode: >", "mode: 'a", "\t", "1: 2", "null: 1", "true: 1", "1.5: x",
    "{}", "[]", "mode: \u2028", "mode: \x85", "? ", ": ", "!!null x", "any: !!pairs [a: 1]", "n: -", "n: ~", "n: 1_000",
]  # fmt: skip


@tiers
def test_parameter_files(slow, tmp_path):
    rng, path, n_read = random.Random(f"yaml/{slow}"), tmp_path / "p.yaml", 0
    files = [file.read_text() for file in sorted((REPOSITORY / "params").rglob("*.yaml"))]
    for _ in range(count("yaml", slow)):
        lines = rng.choice(files).splitlines()[:12] if rng.random() < 0.3 else []
        lines += rng.choices(LINES, k=rng.randint(1, 5))
        if rng.random() < 0.3:
            lines.insert(rng.randrange(len(lines)), f"{rng.choice(['n', 'mode', 'rest', 'x'])}: {text_of(rng, 6)}")
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        for _ in range(rng.choice([0, 0, 1, 3])):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice([b"", b"\xff", b"\0", b"[", b"{", b"'", b"\n", b": ", b"- "]) + text[at + 1 :]
        path.write_bytes(text)
        with Bounded(text):
            try:
                given = parameters.read_yaml(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: no YAML: ") and len(str(error)) < 1000
                continue
            if not isinstance(given, dict):
                continue
            n_read += 1
            known = {key: value for key, value in given.items() if key in DECLARED or rng.random() < 0.2}
            try:
                found = parameters.resolve(DECLARED, known, "here")
            except ValueError as error:
                assert str(error).startswith("parameters of here:\n  - ") and len(str(error)) < 10_000
            else:
                assert all(type(found[name]) is kind.kind for name, kind in DECLARED.items())
                assert 1 <= found["n"] <= 5 and 0 <= found["rate"] <= 1 and found["mode"] in "ab"
                path.write_text(yaml.safe_dump(found))
                again = parameters.resolve(DECLARED, parameters.read_yaml(path), "here")
                assert yaml.safe_dump(again) == path.read_text()  # as text: a NaN in a dict is not itself
    assert n_read > count("yaml", slow) / 10


# -- chat templates

JINJA = [
    "{% for m in messages %}", "{% for p in m['content'] %}", "{% endfor %}", "{% for i in range(9) %}", "{% else %}",
    "{% for i in range(99999) %}", "{% for i in [1, 2] recursive %}{{ loop([1]) }}", "{{ m['role'] }}", "{% do 1 %}",
    "{{ messages[0]['content'] }}", "{% if p['type'] == 'image' %}<image>{% endif %}", "{{ p['text'] }}", "{% if x %}",
    "{% endif %}", "{% set x = 'a' %}", "{% set x = x * 9999 %}", "{% set x = x + x %}", "{{ x }}", "{{ 'a' * 10**9 }}",
    "{{ 9**9**9 }}", "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{{ messages | tojson }}", "{{ 1/0 }}",
    "{{ ''.__class__ }}", "{{ cycler('a') }}", "{% macro f(n) %}", "{% endmacro %}", "{{ f(9) }}", "{{ f(f) }}", "{# ",
    " #}", "{% generation %}", "{% endgeneration %}", "{{ bos_token }}", "{% include 'x' %}", "{{ lipsum(99) }}",
    "{{ 'a' | center(10**8) }}", "{{ 'ab' | indent(10**8) }}", "{{ range(99999) | list | length }}", "{{ x.y.z }}",
    "{{ messages | map(attribute='role') | join('x' * 9999) }}", "{{ 'a%999999999d' % 1 }}", "{% break %}", "{{", "%}",
    "{{ '%s' | format(x) }}", "{% call f() %}", "{% endcall %}", "{% filter upper %}", "{% endfilter %}", "{% raw %}",
    "{{ namespace(a=1) }}", "{% set ns = namespace(n=0) %}", "{% set ns.n = ns.n + 1 %}", "{{ ns.n }}", "{{ m }}",
]  # fmt: skip


def template_of(rng):
    """A template of pieces, or the embedded one with pieces in it."""
    if rng.random() < 0.5:
        return "".join(rng.choices(JINJA + PIECES[:20], k=rng.randint(1, 12)))
    text = models.CHAT_TEMPLATE
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(JINJA) + text[at + rng.choice([0, 0, 1, 20]) :]
    return text


@tiers
def test_chat_templates(slow, monkeypatch):
    monkeypatch.setattr(models, "TEMPLATE_S", 1)
    rng, n_used = random.Random(f"templates/{slow}"), 0
    _, processor = models.load("embedded")
    for _ in range(count("templates", slow)):
        processor.chat_template = template_of(rng)
        with Bounded(processor.chat_template):
            try:
                models.check_template(processor, "here")
            except ValueError as error:
                assert str(error).startswith("the chat template of here needs more than 1 s, 512 MiB or 100000 char")
                continue
            with suppress(*models.FAILED):  # told where it is used
                n_used += isinstance(steps.policy_prompt(problem(), processor), str)
    assert not slow or n_used > count("templates", slow) / 20


# -- the files beside the weights

WEIGHTS = ["model.safetensors", "../w.safetensors", "/w.safetensors", "inside.bin", "a/b.safetensors", "x ", 5]


@tiers
def test_indices_configurations_and_adapters(slow, tmp_path):
    rng, n_read = random.Random(f"indices/{slow}"), 0
    (tmp_path / "model.safetensors").write_bytes(b"")
    given = json.loads((models.EMBEDDED / "config.json").read_text())
    for _ in range(count("indices", slow)):
        names = rng.choices(WEIGHTS[:1] * 9 + WEIGHTS, k=3)
        index = {"metadata": {"total_size": 5}, "weight_map": dict(zip("abc", names, strict=True))}
        config = given | {"transformers_weights": rng.choice([None, "", *WEIGHTS, "x.safetensors.index.json"])}
        texts = {
            "model.safetensors.index.json": raw_of(rng, several(rng, index, 2)),
            "config.json": raw_of(rng, several(rng, config if rng.random() < 0.5 else given, 2)),
            "adapter_config.json": raw_of(rng, several(rng, {"base_model_name_or_path": "../x", "r": 2}, 2)),
        }
        there = {name: text for name, text in texts.items() if rng.random() < 0.7}
        for name in texts:
            (tmp_path / name).unlink(missing_ok=True)
        for name, text in there.items():
            (tmp_path / name).write_bytes(text)
        with Bounded(there):
            try:
                models.check_index(tmp_path)
            except ValueError as error:
                assert str(error).startswith(str(tmp_path)) and len(str(error)) < 700
                continue
            n_read += 1
            assert "config.json" in there or "adapter_config.json" not in there
            named = json.loads(there.get("model.safetensors.index.json", b'{"weight_map": {}}'))["weight_map"].values()
            wanted = json.loads(there.get("config.json", b"{}")).get("transformers_weights") or "model.safetensors"
            assert all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in named)
            assert re.fullmatch(r"[\w.-]+\.safetensors(\.index\.json)?", wanted)
    assert n_read > count("indices", slow) / 20


def within(seconds, call, *args):
    """("read", what call(*args) gives), ("refused", why), or what else it came to, in a process with limits."""
    fork = multiprocessing.get_context("fork")
    ours, its = fork.Pipe(duplex=False)

    def child():
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            its.send(("read", str(call(*args))))
        except (ValueError, OSError) as error:
            its.send(("refused", str(error)))
        except BaseException as error:  # noqa: BLE001 - its kind is what the test looks at
            its.send((type(error).__name__, str(error)))

    process = fork.Process(target=child, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    its.close()
    try:
        return ours.recv() if ours.poll(10 * seconds) else ("", "silent")
    except EOFError:
        return "", "ended"
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of the embedded architecture, small."""
    folder = tmp_path_factory.mktemp("small") / "ck"
    models.new_base(width=32, layers=1, vision_layers=1).save_pretrained(folder)
    models.new_processor().save_pretrained(folder)
    return folder


@tiers
def test_checkpoints_with_another_configuration_are_loaded_or_refused(slow, small, tmp_path):
    rng, kinds = random.Random(f"configs/{slow}"), []
    for i in range(count("configs", slow)):
        folder = shutil.copytree(small, tmp_path / str(i))
        name = rng.choice(["config.json", "config.json", "processor_config.json", "generation_config.json"])
        given = json.loads((folder / name).read_text())
        (folder / name).write_bytes(raw_of(rng, several(rng, given, 3)))
        kind, text = within(30, lambda where: type(models.load(where, device="cpu")[0]).__name__, folder)
        assert kind in ("read", "refused"), (kind, text[:500], (folder / name).read_bytes())
        kinds.append(kind)
        shutil.rmtree(folder)
    assert kinds.count("read") > len(kinds) / 10


@tiers
def test_configurations_of_internvl(slow, tmp_path):
    rng, n_read = random.Random(f"internvl/{slow}"), 0
    given = {kind: test_convert.config_of(kind, 100) for kind in test_convert.KINDS}
    for _ in range(count("internvl", slow)):
        raw = raw_of(rng, several(rng, given[rng.choice(test_convert.KINDS)], 3))
        (tmp_path / "config.json").write_bytes(raw)
        with Bounded(raw):
            try:
                config = convert_config.new_config(convert_config.read_config(tmp_path), False)
                n_read += bool(convert_config.shapes(config))
            except ValueError as error:
                assert len(str(error)) < 1500 and str(error).isprintable()
    assert n_read > count("internvl", slow) / 20


def test_the_bound_on_layers_holds_wherever_they_are_named(tmp_path):
    for key in ("num_hidden_layers", "depth", "n_layers"):
        for value in VALUES:
            config = {"text_config": {"inner": {key: value}}}
            if isinstance(value, int) and value > untrusted.MAX_LAYERS:
                with pytest.raises(ValueError, match=f"{key}' is more than 1000"):
                    untrusted.check_layers(config, tmp_path)
            else:
                untrusted.check_layers(config, tmp_path)
