"""`eval.py generate`: every answer once, an interrupted run ends as one that was not, other settings are refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from sla_jax.config import dump_yaml, load_yaml, parse
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.evaluation import machines
from sla_jax.evaluation.answering import seed_of
from sla_jax.evaluation.benchmarks import load_benchmark
from sla_jax.evaluation.generate import generate, read_settings
from sla_jax.evaluation.machines import note_machine, read_machines
from sla_jax.evaluation.rows import read_answers
from sla_jax.evaluation.settings import BenchmarkConfig, GenerateConfig, MethodConfig, ServerConfig
from sla_jax.scoring.registry import ScorerConfig
from tests.evaluation.runs import METHODS, QUESTIONS, Echo, bytes_of, settings
from tests.programs import ROOT

TURNS = 2 * (3 * 2 + 3)  # methods × turns of both benchmarks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted."""
    return generate(settings(tmp_path_factory.mktemp("whole")), Echo())


def test_every_prompt_is_answered_by_every_method_in_order(whole):
    for method in ("greedy", "sampled"):
        answers = read_answers(whole / "answers" / "mt_bench" / f"{method}.jsonl")
        assert [answer.id for answer in answers] == ["81", "82", "83"]
        assert [answer.category for answer in answers] == ["writing", "math", "writing"]
        assert {answer.method for answer in answers} == {method}
        assert [turn.prompt for turn in answers[0].turns] == QUESTIONS[0]["turns"]
        assert answers[0].turns[0].cost["seconds"] > 0
    assert len(read_answers(whole / "answers" / "alpaca_eval" / "greedy.jsonl")) == 3


def test_machines_are_noted_once_each_time_they_change(whole, monkeypatch, tmp_path):
    (first,) = read_machines(whole)
    assert first["jax"] and first["cores"] >= 1 and len(first["since"]) == len("2026-11-29")
    for cpu in ("a", "a", "b", "b", "a"):
        monkeypatch.setattr(machines, "machine", lambda cpu=cpu: {"cpu": cpu})
        note_machine(tmp_path)
    assert [row["cpu"] for row in read_machines(tmp_path)] == ["a", "b", "a"]
    assert read_machines(tmp_path / "none") == ()


def test_the_second_turn_sees_the_first_answer(tmp_path):
    echo = Echo()
    generate(settings(tmp_path), echo)
    first, second = echo.asked[:2]
    said = read_answers(tmp_path / "run" / "answers" / "mt_bench" / "greedy.jsonl")[0].turns[0].text
    assert [message["content"] for message in first.messages] == ["Write a poem."]
    assert [message["content"] for message in second.messages] == ["Write a poem.", said, "Shorter."]
    assert len(echo.asked) == TURNS


def test_every_turn_has_its_own_seed_and_all_methods_have_that(tmp_path):
    echo = Echo()
    generate(settings(tmp_path, seed=4), echo)
    seeds = {name: [ask.seed for ask in echo.asked if ask.method.name == name] for name in ("greedy", "sampled")}
    assert seeds["greedy"] == seeds["sampled"] and len(set(seeds["greedy"])) == TURNS // 2
    assert seeds["greedy"][1] == seed_of(4, "mt_bench", "81", 1) < 2**63
    assert seed_of(4, "mt_bench", "81", 1) != seed_of(5, "mt_bench", "81", 1)


@pytest.mark.parametrize("stop", range(TURNS))
def test_interrupted_anywhere_and_gone_on_it_is_the_same_byte_for_byte(tmp_path, whole, stop):
    config = settings(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        generate(config, Echo(stop=stop))
    again = Echo()
    out = generate(config, again)
    assert bytes_of(out, "answers", "formats") == bytes_of(whole, "answers", "formats")
    assert bytes_of(out, "seconds").keys() == bytes_of(whole, "seconds").keys()
    assert TURNS - stop <= len(again.asked) <= TURNS - stop + 1, (
        "of a prompt that was cut, the first turn is asked again"
    )


@pytest.mark.parametrize("cut", [1, 40, 10_000])
def test_a_kill_in_the_middle_of_a_line_loses_that_line_alone(tmp_path, whole, cut):
    config = settings(tmp_path)
    out = generate(config, Echo())
    path = out / "answers" / "mt_bench" / "sampled.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][: min(cut, len(lines[2]) - 1)])
    clock = out / "seconds" / "mt_bench" / "sampled.jsonl"
    clock.write_bytes(clock.read_bytes() + b'{"id": "8')
    again = Echo()
    generate(config, again)
    assert len(again.asked) == 2
    assert bytes_of(out, "answers", "formats") == bytes_of(whole, "answers", "formats")
    assert [json.loads(line)["id"] for line in clock.read_text().splitlines()] == ["81", "82", "83"]


def test_nothing_is_asked_again_of_a_run_that_is_complete(tmp_path):
    generate(settings(tmp_path), Echo())
    again = Echo()
    generate(settings(tmp_path), again)
    assert again.asked == []


def test_several_at_a_time_give_the_same_files(tmp_path, whole):
    out = generate(settings(tmp_path), Echo(parallel=3))
    assert bytes_of(out, "answers", "formats") == bytes_of(whole, "answers", "formats")


def test_the_template_is_part_of_the_settings_and_older_runs_go_on(tmp_path):
    config = settings(tmp_path, template={"enable_thinking": False})
    out = generate(config, Echo())
    written = read_settings(out)
    assert (written["template"], written["date"]) == ({"enable_thinking": False}, "2024-07-26")
    older = {name: value for name, value in written.items() if name not in ("template", "date")}
    (out / "settings.json").write_text(json.dumps(older))
    again = Echo()
    generate(dataclasses.replace(config, template={}), again)
    assert again.asked == []
    with pytest.raises(UserError, match="is for a checkpoint; a server has its own day"):
        server = ServerConfig(url="http://a", model="m")
        dataclasses.replace(config, checkpoint=None, server=server, methods=config.methods[:1], date="2026-11-30")


def changed(config, **changes):
    methods = (config.methods[0], dataclasses.replace(config.methods[1], **changes))
    return dataclasses.replace(config, methods=methods)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: dataclasses.replace(c, seed=1), "seed: was 0, now 1"),
        (lambda c: dataclasses.replace(c, max_tokens=9), "max_tokens: was 8, now 9"),
        (lambda c: dataclasses.replace(c, template={"x": False}), "template.x: was null, now false"),
        (lambda c: dataclasses.replace(c, date="2026-11-30"), 'date: was "2024-07-26", now "2026-11-30"'),
        (
            lambda c: changed(c, sampling=Sampling(temperature=0.7)),
            "methods.sampled.sampling.temperature: was 0.8, now 0.7",
        ),
        (lambda c: changed(c, options={"chunk": 3}), "methods.sampled.options.chunk: was"),
        (
            lambda c: dataclasses.replace(c, benchmarks=(dataclasses.replace(c.benchmarks[0], limit=2),)),
            "benchmarks.mt_bench.prompts: was 3, now 2",
        ),
        (
            lambda c: dataclasses.replace(c, benchmarks=(dataclasses.replace(c.benchmarks[0], system="Hi."),)),
            "benchmarks.mt_bench.sha256: was",
        ),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path, whole, change, says):
    config = settings(tmp_path)
    out = generate(config, Echo())
    before = bytes_of(out, "answers", "formats", "seconds"), (out / "settings.json").read_bytes()
    with pytest.raises(UserError) as error:
        generate(change(config), Echo())
    assert says in str(error.value) and str(out) in str(error.value)
    assert before == (bytes_of(out, "answers", "formats", "seconds"), (out / "settings.json").read_bytes())


def test_another_model_is_refused(tmp_path):
    generate(settings(tmp_path), Echo())
    other = Echo()
    other.about = {"fingerprint": "1234"}
    with pytest.raises(UserError, match='model.fingerprint: was "00ff", now "1234"'):
        generate(settings(tmp_path), other)


def test_methods_and_benchmarks_can_be_added(tmp_path, whole):
    config = settings(tmp_path)
    generate(dataclasses.replace(config, methods=METHODS[:1], benchmarks=config.benchmarks[1:]), Echo())
    out = generate(dataclasses.replace(config, methods=METHODS[1:]), Echo())
    generate(config, Echo())
    assert bytes_of(out, "answers", "formats") == bytes_of(whole, "answers", "formats")
    assert set(read_settings(out)["methods"]) == {"greedy", "sampled"}


def test_an_error_names_the_prompt_and_keeps_what_was_answered(tmp_path, whole):
    class Fails(Echo):
        def answer(self, ask):
            if "1 + 1" in ask.messages[0]["content"]:
                raise UserError("no.")
            return super().answer(ask)

    with pytest.raises(UserError, match="mt_bench, prompt '82', turn 1, method greedy: no. What was answered before"):
        generate(settings(tmp_path), Fails())
    assert [one.id for one in read_answers(tmp_path / "run" / "answers" / "mt_bench" / "greedy.jsonl")] == ["81"]
    out = generate(settings(tmp_path), Echo())
    assert bytes_of(out, "answers", "formats") == bytes_of(whole, "answers", "formats")


def test_prompts_without_room_are_named_before_anything_is_answered(tmp_path):
    tight = Echo(room=44)
    with pytest.raises(
        UserError, match=r"1 of 3 prompts of mt_bench cannot be answered; the first, '82': .* \[\"82\"\]"
    ):
        generate(settings(tmp_path), tight)
    assert tight.asked == [] and not (tmp_path / "run").exists()
    config = settings(tmp_path)
    fewer = dataclasses.replace(config.benchmarks[0], exclude=("82",))
    generate(dataclasses.replace(config, benchmarks=(fewer,)), tight)
    assert len(tight.asked) == 2 * 2 * 2


def test_answers_in_another_order_are_refused(tmp_path):
    out = generate(settings(tmp_path), Echo())
    path = out / "answers" / "mt_bench" / "greedy.jsonl"
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(UserError, match=r"greedy.jsonl, line 1: 'id' is '83', and mt_bench has '81' there"):
        generate(settings(tmp_path), Echo())


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists and is no run of this program"):
        generate(settings(tmp_path), Echo())
    with pytest.raises(UserError, match="is no run: it has no settings.json"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MethodConfig(name="a", method="sla", options={"widht": 2}), "unknown key 'widht'"),
        (lambda: MethodConfig(name="a", method="sla", options={"width": "2"}), "'width' is '2' (str)"),
        (lambda: MethodConfig(name="a", method="sla", options={"width": 0}), "width=0 is out of range"),
        (lambda: MethodConfig(name="a", method="best_of_n"), "the method a: at temperature 0"),
        (lambda: MethodConfig(name="a b", method="greedy"), "a method is named 'a b'"),
        (lambda: MethodConfig(name="a", method="greedy", sampling=Sampling(seed=3)), "the run has one seed"),
        (lambda: config_of(checkpoint=None), "there is neither"),
        (lambda: config_of(server=ServerConfig(url="http://h/v1", model="m")), "there is both"),
        (lambda: config_of(methods=()), "there is no method"),
        (lambda: config_of(methods=(METHODS[0], METHODS[0])), "two methods have one name"),
        (lambda: config_of(methods=(MethodConfig(name="a", method="greedy", profile="p"),)), "which is a server's"),
        (lambda: served(MethodConfig(name="a", method="sla")), "server.extensions to true"),
        (
            lambda: served(MethodConfig(name="a", method="greedy", sampling=Sampling(top_k=3))),
            "server.extensions to true",
        ),
        (lambda: served(MethodConfig(name="a", method="greedy", scorer=ScorerConfig())), "a server is asked"),
        (
            lambda: served(MethodConfig(name="a", method="sla", options={"behind": 1.0}), extensions=True),
            "has behind, which serve.py takes from its profiles alone",
        ),
        (
            lambda: served(MethodConfig(name="a", method="sla", options={"width": 2}, profile="p"), extensions=True),
            "the options are the profile's",
        ),
        (lambda: ServerConfig(url="localhost", model="m"), "has to begin with http"),
    ],
)
def test_settings_that_cannot_be_are_named(make, says):
    with pytest.raises(UserError) as error:
        make()
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["smoke", "smollm2"])
def test_the_configs_are_read_and_flags_overrule_them(name, capsys):
    path = ROOT / "configs" / "eval" / f"{name}.yaml"
    flags = ["--max-tokens", "7", "--seed", "3", "--benchmarks.0.limit", "2", "--methods.0.name", "plain"]
    config = parse(GenerateConfig, [str(path), *flags], prog="eval.py generate", description="")
    assert (config.max_tokens, config.seed, config.benchmarks[0].limit, config.methods[0].name) == (7, 3, 2, "plain")
    assert config.folder == Path("runs") / "eval" / name
    assert dataclasses.replace(config, max_tokens=48).methods[1:] == load_yaml(GenerateConfig, path).methods[1:]
    with pytest.raises(UserError, match="unknown flag"):
        parse(GenerateConfig, [str(path), "--max-token", "7"], prog="eval.py generate", description="")


def test_a_server_is_named_by_flags(tmp_path):
    dump_yaml(settings(tmp_path), tmp_path / "run.yaml")
    flags = ["--server.url", "http://h/v1", "--server.model", "m", "--checkpoint", "None"]
    config = parse(GenerateConfig, [str(tmp_path / "run.yaml"), *flags], prog="eval.py generate", description="")
    assert config.server == ServerConfig(url="http://h/v1", model="m") and config.checkpoint is None


def test_the_prompts_of_the_smoke_run_are_eight(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_yaml(GenerateConfig, ROOT / "configs" / "eval" / "smoke.yaml")
    (benchmark,) = [load_benchmark(one) for one in config.benchmarks]
    assert len(benchmark.prompts) == 8 and len(config.methods) == 4
    assert max(len(prompt.turns) for prompt in benchmark.prompts) == 2


def config_of(**changes):
    base = {"name": "n", "benchmarks": (BenchmarkConfig(name="b", file="f"),), "methods": METHODS, "checkpoint": "c"}
    return GenerateConfig(**{**base, **changes})


def served(method, **server):
    address = ServerConfig(url="http://h/v1", model="m", **server)
    return config_of(checkpoint=None, server=address, methods=(method,))
