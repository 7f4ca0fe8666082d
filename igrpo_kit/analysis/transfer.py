"""The meter: what a policy can gain from a draft, measured before (and during) reinforcement learning.

On problems with one correct answer, which is written in one way, the probability of a correct completion is
exp(log pi(answer | prompt)): exact, and also defined far below 1 / samples. So p on q, the repair rate r on
own wrong drafts, and the keep rate on correct ones have no sampling error except that of the drafts and of
the problems. Other problems have sampled rates only, and a bound where nothing was correct.

*Transfer* asks whether training on q' teaches q: one small step raises log pi(answer | q') of some problems,
and s is the rise of log pi(answer | q) over that of log pi(answer | q'), both on *other* problems. The rise
is also taken on the tokens that limit p alone, because an answer may contain tokens that any step improves.

Quantities follow the first study of when a draft pays; live groups are those of `core.advantages`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igrpo_kit.core.rows import Row
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import encode_answers, encode_prompts
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.training.rollout import question_prompts


def answer_log_probs(
    policy: Policy, problems: Sequence[Problem], drafts: Sequence[str] | None = None
) -> tuple[Float[Tensor, "P T"], Bool[Tensor, "P T"]]:
    """log pi(a_t | q, a_<t) of each problem's reference answer and the end token, or given q' with a draft.

    Args:
        policy: the policy; the result has its gradient.
        problems: P problems, whose `answer` is written as the policy writes it.
        drafts: one per problem, for q'; None for q.

    Returns:
        Log-probs in nats, 0 outside the mask, and the mask.
    """
    form, tokenizer = policy.prompt_format, policy.tokenizer
    prompts = [form.problem_messages(p.question) for p in problems]
    if drafts is not None:
        prompts = [
            form.refinement_messages(p.question, draft, tokenizer=tokenizer)
            for p, draft in zip(problems, drafts, strict=True)
        ]
    ids, mask = encode_answers(tokenizer, [p.answer for p in problems], policy.model.device)
    log_probs = completion_log_probs(policy.model, encode_prompts(tokenizer, prompts), ids, mask)
    return log_probs, mask


def live_share(p: Float[Tensor, " P"], group_size: int) -> float:
    """Expected share of groups with both rewards: mean of 1 - p^G - (1 - p)^G over prompts."""
    return (1 - p**group_size - (1 - p) ** group_size).mean().item()


@torch.no_grad()
def exact_row(sampler: Sampler, problems: Sequence[Problem]) -> Row:
    """Exact rates of the sampler's policy on problems with unique answers, with one own draft for each.

    `p` is the mean probability of a correct answer on q, `log_prob` the mean of its logarithm. `repair` is
    the same probability given an own wrong draft, `keep` given the correct answer as the draft, `copy` the
    probability of writing a wrong draft again, and `reliance` the mean of log pi(answer | q') - log pi(answer
    | q) over wrong drafts. NaN where no draft was wrong. `live/q8`, `live/q4` and `live/refine4` are expected
    shares of live groups: 8 or 4 samples from q, and 4 refinements of one own draft.

    Args:
        sampler: samples one draft per problem at its temperature.
        problems: P problems.
    """
    policy = sampler.policy
    on_q = answer_log_probs(policy, problems)[0].sum(dim=1)
    drafts = sampler.sample(question_prompts(sampler, problems), 1).texts
    wrong = torch.tensor([d != p.answer for d, p in zip(drafts, problems, strict=True)])
    on_draft = answer_log_probs(policy, problems, drafts)[0].sum(dim=1)
    on_answer = answer_log_probs(policy, problems, [p.answer for p in problems])[0].sum(dim=1)
    p, r = on_q.exp(), on_draft.exp()
    return {
        "p": p.mean().item(),
        "log_prob": on_q.mean().item(),
        "repair": r[wrong].mean().item(),
        "keep": on_answer.exp().mean().item(),
        "reliance": (on_draft - on_q)[wrong].mean().item(),
        "drafts_wrong": wrong.float().mean().item(),
        "live/q8": live_share(p, 8),
        "live/q4": live_share(p, 4),
        "live/refine4": live_share(r, 4),
    }
