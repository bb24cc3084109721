"""What a body of /v1/completions or /v1/chat/completions asks for, checked as far as it can be without its tokens."""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from sla_jax.decode.methods import useless_option
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import nearest, quoted
from sla_jax.serving.errors import ApiError, bad
from sla_jax.serving.gateway import Gateway, seed_of
from sla_jax.serving.messages import Chat
from sla_jax.serving.schema import ChatBody, CompletionBody, Sampled, Search
from sla_jax.serving.settings import ModelInfo, Profile

Source = str | list[int] | Chat
SETTINGS = ("method", "width", "chunk", "depth", "branch_first", "beams", "n", "alpha")


class Asked(NamedTuple):
    """What completions and chats write differently."""

    prompts: Sequence[Source]
    prompt_param: str  # where errors are laid
    max_tokens: int | None  # None: what the context leaves
    limit_param: str
    most_tokens: int | None  # without max_tokens: as many, if the context has room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Everything but the prompts' tokens."""

    model: str  # as the client wrote it
    profile: Profile
    prompts: Sequence[Source]
    prompt_param: str
    max_tokens: int | None
    limit_param: str
    most_tokens: int | None
    n: int
    sampling: Sampling  # of choice 0
    stops: tuple[str, ...]
    stop_tokens: tuple[int, ...]
    skip_special_tokens: bool
    add_special_tokens: bool
    top: int | None  # alternatives beside each token; None: no log-probabilities
    echo: bool
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    return_rewards: bool
    return_candidates: bool
    return_tree: bool
    return_cost: bool
    thinking_budget: int | None
    splits: bool = False  # into thinking and answer
    tells_thinking: bool = False

    @property
    def answers(self) -> int:
        """How many requests it makes."""
        return 0 if self.max_tokens == 0 else len(self.prompts) * self.n

    @property
    def tokens(self) -> int | None:
        """The most tokens that each answer may have; None for what the context leaves."""
        return self.most_tokens if self.max_tokens is None else self.max_tokens

    @property
    def tells_rounds(self) -> bool:
        """Whether rounds are told of."""
        return self.return_rewards or self.return_tree

    @property
    def places(self) -> int:
        """How many places in the queue: one for every answer and every prompt to be inspected."""
        return max(1, self.answers + (len(self.prompts) if self.inspects else 0))

    @property
    def inspects(self) -> bool:
        """Whether the prompt's own log-probabilities are wanted."""
        return self.echo and self.top is not None

    def sampling_of(self, choice: int) -> Sampling:
        """Choice 0 keeps the seed; the others have seeds made from it."""
        if choice == 0:
            return self.sampling
        return dataclasses.replace(self.sampling, seed=seed_of(self.sampling.seed, choice))


def completion_order(gateway: Gateway, body: CompletionBody) -> Order:
    """The order in a completion's body. Raises ApiError."""
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens is 0; it has to be at least 1, unless echo asks for the prompt alone.", "max_tokens")
    one = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    prompts = cast("list[Source]", [body.prompt] if one else body.prompt)
    default = 16 if body.max_tokens is None else None
    asked = Asked(prompts, "prompt", body.max_tokens, "max_tokens", default)
    profile = choose(gateway.model, body.model, body.search)
    order = _order(gateway, body, profile, asked, top=body.logprobs, echo=body.echo)
    return dataclasses.replace(order, add_special_tokens=body.add_special_tokens)


def chat_order(gateway: Gateway, body: ChatBody) -> Order:
    """The order in a chat's body. Raises ApiError."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise bad(
            f"max_tokens is {body.max_tokens} and max_completion_tokens is {body.max_completion_tokens}; give one.",
            "max_completion_tokens",
        )
    if body.top_logprobs and not body.logprobs:
        raise bad("top_logprobs is given without logprobs; set logprobs to true.", "top_logprobs")
    name = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    profile = choose(gateway.model, body.model, body.search)
    chat = body.chat(body.messages, profile.template)
    asked = Asked([chat], "messages", getattr(body, name), name, None)
    splits = gateway.reasoner.on and body.separate_reasoning
    order = _order(gateway, body, profile, asked, top=body.top_logprobs if body.logprobs else None, echo=False)
    return dataclasses.replace(order, splits=splits, tells_thinking=splits and body.include_reasoning)


def choose(model: ModelInfo, name: str | None, search: Search | None) -> Profile:
    """The declared profile that a model's name and a `search` agree on; the first of several. Raises ApiError."""
    wanted = {field: getattr(search, field) for field in SETTINGS if getattr(search, field, None) is not None}
    by_name = profile_of(model, name)
    by_field = search.profile if search else None
    if by_name and by_field and by_name != by_field:
        raise bad(
            f"the model's name chooses the profile {by_name} and search.profile {quoted(by_field)}.", "search.profile"
        )
    chosen = by_name or by_field
    listing = "; ".join(describe(profile) for profile in model.profiles)
    named = [profile for profile in model.profiles if chosen in (None, profile.name)]
    if not named:
        hint = nearest(chosen or "", [profile.name for profile in model.profiles])
        raise bad(f"there is no search profile {quoted(chosen)}; this server has: {listing}.{hint}", "search.profile")
    fitting = [profile for profile in named if all(_setting(profile, key) == wanted[key] for key in wanted)]
    if not fitting:
        asked = ", ".join(f"{key}={value}" for key, value in wanted.items())
        where = f"the profile {chosen} is not" if chosen else "no declared profile is"
        raise bad(f"{where} a search with {asked}; this server has: {listing}.", "search")
    return fitting[0]


def profile_of(model: ModelInfo, name: str | None) -> str | None:
    """The profile that a model's name chooses, if any. Raises ApiError 404 for a model that is not served."""
    if name is None or name == model.name:
        return None
    names = [model.name, *(f"{model.name}:{profile.name}" for profile in model.profiles)]
    if name not in names:
        message = f"there is no model {quoted(name)}; this server has: {', '.join(names)}.{nearest(name, names)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return name.removeprefix(f"{model.name}:")


def describe(profile: Profile) -> str:
    """A profile as the list of errors shows it."""
    decoder, said = profile.decoder(), [str(profile.method)]
    for field in dataclasses.fields(decoder):
        value = getattr(decoder, field.name)
        if value != field.default or (field.name in SETTINGS and value is not False):
            said.append(field.name if value is True else f"{field.name} {value}")
    said += ["traces"] if profile.traces else []
    return f"{profile.name} ({', '.join(said)})"


def _setting(profile: Profile, name: str) -> object:
    """What a profile has for a search's setting; nothing if its method has no such setting."""
    return profile.method if name == "method" else getattr(profile.decoder(), name, None)


def _order(gateway: Gateway, body: Sampled, profile: Profile, asked: Asked, *, top: int | None, echo: bool) -> Order:
    n, most = body.n, gateway.config.limits.choices
    if body.best_of not in (None, n):
        raise bad(f"best_of is {body.best_of}; only n={n} is possible, there is no choice among answers.", "best_of")
    if len(asked.prompts) * n > most:
        raise bad(
            f"{len(asked.prompts)} prompts times n={n} are more than the {most} answers that a request may have.", "n"
        )
    if (top or 0) > gateway.model.top_logprobs:
        raise bad(f"{top} alternatives beside a token are more than {gateway.model.top_logprobs}.", "logprobs")
    limit = asked.most_tokens if asked.max_tokens is None else asked.max_tokens
    if limit and body.min_tokens > limit:
        raise bad(f"min_tokens is {body.min_tokens}; the answer may have {limit} ({asked.limit_param}).", "min_tokens")
    if (body.stream_options.include_usage or body.stream_options.continuous_usage_stats) and not body.stream:
        raise bad("stream_options is given without stream; set stream to true or leave it out.", "stream_options")
    told = body.search
    if told.return_rewards and not gateway.model.has_channel:
        raise bad("return_rewards is set; the model has no reward channel.", "search.return_rewards")
    sampling = _sampling(body, gateway.model.vocabulary)
    _check_profile(profile, sampling, told, top)
    budget = _thinking_budget(gateway, profile, body)
    return Order(
        model=body.model or gateway.model.name,
        profile=profile,
        **asked._asdict(),
        n=n,
        sampling=sampling,
        stops=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_tokens=tuple(body.stop_token_ids),
        skip_special_tokens=body.skip_special_tokens,
        add_special_tokens=True,
        top=top,
        echo=echo,
        ignore_eos=body.ignore_eos,
        stream=body.stream,
        include_usage=body.stream_options.include_usage,
        continuous_usage=body.stream_options.continuous_usage_stats,
        return_token_ids=body.return_token_ids,
        return_rewards=told.return_rewards,
        return_candidates=told.return_candidates,
        return_tree=told.return_tree,
        return_cost=told.return_cost,
        thinking_budget=budget,
    )


def _check_profile(profile: Profile, sampling: Sampling, told: Search, top: int | None) -> None:
    """Raise ApiError for what a profile's search cannot do."""
    if useless := useless_option(profile.decoder(), sampling):
        raise bad(f"the profile {profile.name}: {useless[1]}", useless[0])
    if told.return_candidates and profile.streams:
        raise bad(
            f"return_candidates is set; the profile {profile.name} ({profile.method}) commits its text as it goes and "
            "has no candidates.",
            "search.return_candidates",
        )
    if told.return_tree and not profile.traces:
        why = "takes no snapshots of its tree; a profile that does is declared with traces: true"
        if not profile.streams:
            why = "grows no tree; return_candidates tells what became of its candidates"
        raise bad(f"return_tree is set; the profile {profile.name} ({profile.method}) {why}.", "search.return_tree")
    if top and not profile.streams:
        raise bad(
            f"the profile {profile.name} ({profile.method}) knows no alternatives beside its tokens; give "
            "top_logprobs 0 in a chat, logprobs 0 in a completion.",
            "logprobs",
        )
    if told.return_rewards and profile.method == "beam":
        raise bad("return_rewards is set; beam search reads no rewards. /v1/rewards does.", "search.return_rewards")


def _thinking_budget(gateway: Gateway, profile: Profile, body: Sampled) -> int | None:
    """The budget, by whichever of its names. Raises ApiError where no thinking can be ended."""
    names = {
        "max_thinking_tokens": body.max_thinking_tokens,
        "thinking_token_budget": body.thinking_token_budget,
        "search.thinking_budget": body.search.thinking_budget,
    }
    given = {name: budget for name, budget in names.items() if budget not in (None, -1)}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name} is {budget}" for name, budget in given.items())
        raise bad(f"{said}; give one.", next(iter(given)))
    name, budget = next(iter(given.items()), ("", None))
    if budget is not None and not gateway.reasoner.on:
        raise bad(
            f"{name} is {budget}; the model does not think in <think> … </think>, as far as its chat template and its "
            "tokens say, or the server's option `reasoning` is off.",
            name,
        )
    if budget is not None and not profile.streams:
        raise bad(
            f"{name} is {budget}; the profile {profile.name} ({profile.method}) has no text before its end, so that "
            "its thinking cannot be ended. Choose a profile that streams (greedy, sla).",
            name,
        )
    return budget


def _sampling(body: Sampled, vocabulary: int) -> Sampling:
    """How to choose tokens; without a seed, one that nobody has had."""
    own = ("seed", "logit_bias", "top_k")
    values = {field.name: getattr(body, field.name) for field in dataclasses.fields(Sampling) if field.name not in own}
    seed = body.seed
    if seed is None:
        seed = secrets.randbits(63) if body.temperature else 0
    biases = _biases(body.logit_bias, vocabulary)
    return Sampling(**values, top_k=max(body.top_k, 0), seed=seed, logit_bias=biases)


def _biases(biases: Mapping[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    for token in biases:
        if int(token) >= vocabulary:
            raise bad(
                f"logit_bias names the token {token}; the vocabulary goes from 0 to {vocabulary - 1}.", "logit_bias"
            )
    return tuple((int(token), bias) for token, bias in biases.items())
