"""The judge that a config describes. Imported here: a verifier must not cost the import of a model."""

from sla_jax.evaluation.judges.config import JudgeConfig
from sla_jax.evaluation.judges.protocol import Judge, PairJudge


def make_judge(config: JudgeConfig) -> Judge | PairJudge:
    """Load what the judge needs. Raises UserError."""
    if config.scorer is not None:
        from sla_jax.evaluation.judges.scored import ScorerJudge
        from sla_jax.scoring.registry import make_scorer

        return ScorerJudge(make_scorer(config.scorer))
    if config.kind == "armo" and config.checkpoint:
        from sla_jax.evaluation.judges.scored import ScorerJudge
        from sla_jax.scoring.armo import ArmoScorer

        return ScorerJudge(ArmoScorer(config.checkpoint, **config.rendering()))
    if config.kind == "perplexity" and config.checkpoint:
        from sla_jax.evaluation.judges.perplexity import PerplexityJudge

        return PerplexityJudge(config.checkpoint, **config.rendering())
    if config.url and config.model:
        from sla_jax.evaluation.judges.llm import RETRIES, TIMEOUT, LlmJudge, Server

        retries = RETRIES if config.retries is None else config.retries
        timeout = config.timeout or TIMEOUT
        return LlmJudge(Server(config.url, config.model, key_env=config.key_env, retries=retries, timeout=timeout))
    return _checked(config)


def _checked(config: JudgeConfig) -> Judge:
    from sla_jax.evaluation.judges import intrinsic, verify

    if config.kind == "math":
        return verify.MathJudge(config.timeout or verify.TIMEOUT)
    if config.kind == "gsm8k":
        return verify.Gsm8kJudge()
    if config.kind == "ifeval":
        return verify.IfevalJudge()
    assert config.kind == "intrinsic", "every other kind is made above"
    return intrinsic.IntrinsicJudge()
