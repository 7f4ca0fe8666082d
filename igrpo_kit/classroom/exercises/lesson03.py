"""Exercises of lesson 03, policy gradient in ten lines. Policies are softmaxes of logits, in NumPy."""

from itertools import product

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from igrpo_kit.classroom.exercise import Exercise, FunctionCheck, ValueCheck

Logits = Float[np.ndarray, " K"]
Gradient = Float[np.ndarray, " K"]


def _random_logits(rng: np.random.Generator) -> list[Logits]:
    return [rng.normal(0, 1.5, size) for size in (2, 3, 4, 5)]


# --- score: the gradient of log pi(action)


def score(logits: Logits, action: int | np.integer) -> Gradient:
    """d log pi(action) / d logits: a one at the action, minus the probabilities."""
    return np.eye(len(logits))[action] - softmax(logits)


def _score_negated(logits: Logits, action: int) -> Gradient:
    """The sign is reversed: raising an action's own logit makes the action *more* likely."""
    return -score(logits, action)


def _score_one_hot(logits: Logits, action: int) -> Gradient:
    """The derivative of the normalizer is missing: log pi(a) = logit_a - log(sum of exp(logits))."""
    return np.eye(len(logits))[action]


def _score_of_pi(logits: Logits, action: int) -> Gradient:
    """This is the gradient of pi(action); divide it by pi(action) to get that of its logarithm."""
    return softmax(logits)[action] * score(logits, action)


def _score_own_logit(logits: Logits, action: int) -> Gradient:
    """The entries of the other actions are 0 here, but their logits move pi(action) as well."""
    return np.where(np.arange(len(logits)) == action, score(logits, action), 0.0)


def _score_minus_logits(logits: Logits, action: int) -> Gradient:
    """You subtract the logits; the derivative of log(sum of exp(logits)) is their softmax."""
    return np.eye(len(logits))[action] - logits


_SCORE = FunctionCheck(
    reference=score,
    typed=[
        ((np.zeros(2), 0), np.array([0.5, -0.5])),
        ((np.zeros(4), 2), np.array([-0.25, -0.25, 0.75, -0.25])),
        ((np.log(np.array([1.0, 2.0, 5.0])), 1), np.array([-0.125, 0.75, -0.625])),
    ],
    random=lambda rng: [(logits, int(rng.integers(len(logits)))) for logits in _random_logits(rng)],
    mistakes=[_score_negated, _score_one_hot, _score_of_pi, _score_own_logit, _score_minus_logits],
)

# --- exact_gradient: of the expected reward


def exact_gradient(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """Sum over actions of pi(a) r(a) score(a)."""
    pi = softmax(logits)
    return pi * (rewards - pi @ rewards)


def _exact_without_pi(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """Every action counts equally here; weight each one by its probability."""
    return sum(r * score(logits, a) for a, r in enumerate(rewards))


def _exact_without_mean(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """pi * r holds only the one-hot part of the scores. Subtract what their "- pi" part adds up to."""
    return softmax(logits) * rewards


def _exact_plain_mean(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """You subtract the plain mean of the rewards; the policy's mean weights them with pi."""
    return softmax(logits) * (rewards - rewards.mean())


def _exact_negated(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """The sign is reversed: this points to where the expected reward falls."""
    return -exact_gradient(logits, rewards)


def _exact_pi_twice(logits: Logits, rewards: Float[np.ndarray, " K"]) -> Gradient:
    """pi stands in twice: the score is the gradient of log pi, so it is weighted with pi once."""
    pi = softmax(logits)
    return sum(pi[a] ** 2 * r * score(logits, a) for a, r in enumerate(rewards))


_EXACT_GRADIENT = FunctionCheck(
    reference=exact_gradient,
    typed=[
        # pi = 1/2 each, mean reward 1/2
        ((np.zeros(2), np.array([1.0, 0.0])), np.array([0.25, -0.25])),
        # pi = 1/4 each, mean reward 2
        ((np.zeros(4), np.array([0.0, 0.0, 4.0, 4.0])), np.array([-0.5, -0.5, 0.5, 0.5])),
        # pi = 1/8, 2/8, 5/8, mean reward 5/8 + 1/4 = 7/8
        ((np.log(np.array([1.0, 2.0, 5.0])), np.array([0.0, 1.0, 1.0])), np.array([-7 / 64, 2 / 64, 5 / 64])),
    ],
    random=lambda rng: [(logits, rng.normal(0.5, 1, len(logits))) for logits in _random_logits(rng)],
    mistakes=[_exact_without_pi, _exact_without_mean, _exact_plain_mean, _exact_negated, _exact_pi_twice],
)

# --- bug_sign: one step of REINFORCE that goes down


def reinforce_step(logits: Logits, action: int, reward: float, learning_rate: float) -> Logits:
    """One step up the gradient of reward * log pi(action)."""
    return logits + learning_rate * reward * score(logits, action)


def _step_down(logits: Logits, action: int, reward: float, learning_rate: float) -> Logits:
    """This still goes down: with a positive reward the sampled action must become *more* likely."""
    return logits - learning_rate * reward * score(logits, action)


def _step_without_reward(logits: Logits, action: int, reward: float, learning_rate: float) -> Logits:
    """Every sampled action becomes more likely, whatever its reward."""
    return logits + learning_rate * score(logits, action)


def _step_without_rate(logits: Logits, action: int, reward: float, learning_rate: float) -> Logits:
    """The learning rate is missing."""
    return logits + reward * score(logits, action)


def _gradient_alone(logits: Logits, action: int, reward: float, learning_rate: float) -> Logits:
    """That is the change of the logits; return the new logits."""
    return learning_rate * reward * score(logits, action)


_BUG_SIGN = FunctionCheck(
    reference=reinforce_step,
    typed=[
        ((np.zeros(2), 0, 1.0, 0.2), np.array([0.1, -0.1])),
        ((np.zeros(2), 0, -1.0, 0.2), np.array([-0.1, 0.1])),
        ((np.array([1.0, 1.0, 1.0, 1.0]), 3, 2.0, 0.5), np.array([0.75, 0.75, 0.75, 1.75])),
        ((np.array([0.3, -2.0]), 1, 0.0, 0.5), np.array([0.3, -2.0])),
    ],
    random=lambda rng: [
        (logits, int(rng.integers(len(logits))), float(rng.normal()), float(rng.uniform(0.1, 0.9)))
        for logits in _random_logits(rng)
    ],
    mistakes=[_step_down, _step_without_reward, _step_without_rate, _gradient_alone],
)

# --- baseline: does subtracting a constant change the mean of the estimates?

_BASELINE = ValueCheck(
    right="unchanged",
    mistakes={
        "larger": "Compute the mean of the scores: the sum over actions of pi(a) * score(a). "
        "What does b times that add?",
        "smaller": "Compute the mean of the scores: the sum over actions of pi(a) * score(a). "
        "What does b times that subtract?",
    },
    otherwise="Answer with one of the words: 'larger', 'smaller', 'unchanged'.",
)

# --- estimator_variance


def _estimates(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> Float[np.ndarray, "K K"]:
    """One row per action: what the estimator is if that action is sampled."""
    return np.array([(r - baseline) * score(logits, a) for a, r in enumerate(rewards)])


def estimator_variance(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """Variance of (r - b) * score over the sampled action, summed over the entries of the gradient."""
    pi, estimates = softmax(logits), _estimates(logits, rewards, baseline)
    return float(pi @ (estimates**2).sum(axis=1) - ((pi @ estimates) ** 2).sum())


def _second_moment(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """The square of the mean is missing: a variance is the mean square minus the squared mean."""
    return float(softmax(logits) @ (_estimates(logits, rewards, baseline) ** 2).sum(axis=1))


def _unweighted_variance(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """You average over actions as if all were equally likely; the policy samples them with pi."""
    return float(_estimates(logits, rewards, baseline).var(axis=0).sum())


def _variance_without_baseline(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """The baseline has no effect here: subtract it from each reward."""
    return estimator_variance(logits, rewards, 0.0)


def _baseline_added(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """The baseline is added; subtract it."""
    return estimator_variance(logits, rewards, -baseline)


def _mean_over_entries(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """You take the mean over the entries of the gradient; sum over them."""
    return estimator_variance(logits, rewards, baseline) / len(logits)


def _standard_deviation(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """That is the standard deviation; the variance is its square."""
    return float(np.sqrt(max(0.0, estimator_variance(logits, rewards, baseline))))


def _variance_of_rewards(logits: Logits, rewards: Float[np.ndarray, " K"], baseline: float) -> float:
    """That is the variance of the rewards; each of them multiplies a score."""
    pi = softmax(logits)
    return float(pi @ rewards**2 - (pi @ rewards) ** 2)


_ESTIMATOR_VARIANCE = FunctionCheck(
    reference=estimator_variance,
    typed=[
        # estimates +-(1, -1)/2 for r = 1 and 0 for r = 0: mean square 1/4, squared mean 1/8
        ((np.zeros(2), np.array([1.0, 0.0]), 0.0), 0.125),
        # with b = 1/2 both actions give the same estimate
        ((np.zeros(2), np.array([1.0, 0.0]), 0.5), 0.0),
        # equal rewards: (r - b)^2 times the mean of |score|^2, which is 1/2
        ((np.zeros(2), np.array([3.0, 3.0]), 1.0), 2.0),
    ],
    random=lambda rng: [
        (logits, rng.normal(0.5, 1, len(logits)), float(rng.normal(0.5, 1))) for logits in _random_logits(rng)
    ],
    mistakes=[
        _second_moment,
        _unweighted_variance,
        _variance_without_baseline,
        _baseline_added,
        _mean_over_entries,
        _standard_deviation,
        _variance_of_rewards,
    ],
)

# --- group_gradient: the mean of the group as baseline


def group_gradient(
    logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]
) -> Gradient:
    """Mean over a group of (reward - mean of the group) * score."""
    centered = rewards - rewards.mean()
    return np.mean([a * score(logits, i) for a, i in zip(centered, actions, strict=True)], axis=0)


def _group_sum(logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]) -> Gradient:
    """You add up the group; take its mean, so that the step does not grow with G."""
    return len(actions) * group_gradient(logits, actions, rewards)


def _group_uncentered(
    logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]
) -> Gradient:
    """The baseline is missing: subtract the group's mean from each reward."""
    return np.mean([r * score(logits, i) for r, i in zip(rewards, actions, strict=True)], axis=0)


def _group_leave_one_out(
    logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]
) -> Gradient:
    """That is leave-one-out: your mean omits a completion's own reward. Here all G are in the mean."""
    size = len(actions)
    return size / (size - 1) * group_gradient(logits, actions, rewards)


def _group_standardized(
    logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]
) -> Gradient:
    """You also divide by the standard deviation. GRPO does, this estimate does not."""
    std = rewards.std(ddof=1)
    return group_gradient(logits, actions, rewards) / std if std else np.zeros(len(logits))


def _group_negated(
    logits: Logits, actions: Int[np.ndarray, " G"], rewards: Float[np.ndarray, " G"]
) -> Gradient:
    """The sign is reversed: a reward above the group's mean must raise the log-prob of its action."""
    return -group_gradient(logits, actions, rewards)


_GROUP_GRADIENT = FunctionCheck(
    reference=group_gradient,
    typed=[
        # centered rewards 1/2, -1/2; scores +-(1, -1)/2
        ((np.zeros(2), np.array([0, 1]), np.array([1.0, 0.0])), np.array([0.25, -0.25])),
        # all rewards equal
        ((np.zeros(3), np.array([0, 1, 2, 2]), np.ones(4)), np.zeros(3)),
        # the same action with different rewards: centered rewards cancel
        ((np.zeros(2), np.array([1, 1]), np.array([3.0, 1.0])), np.zeros(2)),
    ],
    random=lambda rng: [
        (logits, rng.integers(0, len(logits), size), rng.integers(0, 2, size) + 0.5 * rng.random(size))
        for size, logits in zip((3, 5, 6, 8), _random_logits(rng), strict=True)
    ],
    mistakes=[_group_sum, _group_uncentered, _group_leave_one_out, _group_standardized, _group_negated],
)

# --- shrinkage: how much of the gradient is left

_SHRINKAGE = ValueCheck(
    right=0.875,
    mistakes={
        1.0: "The mean of the group holds the own reward: a part of it is subtracted from itself.",
        0.125: "That is the part that is lost: 1/8 of each reward is subtracted from itself.",
        7.0: "G - 1 = 7 counts the others; the factor is at most 1.",
        8 / 7: "The estimate shrinks: the factor is below 1. Leave-one-out undoes it with 8/7.",
    },
    otherwise="Write reward minus mean as (1 - 1/G) of the own reward minus the others. What is 1 - 1/8?",
)

# --- two_tokens: the gradient of log pi of a sequence


def two_tokens(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """Gradient of log pi(o_1) + log pi(o_2 | o_1): one score for each token, at the context it had."""
    a, b = tokens
    row = np.zeros_like(second)
    row[a] = score(second[a], b)
    return score(first, a), row


def _every_context(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """Only the logits of the context that was sampled, second[o_1], have a gradient; other rows stay 0."""
    return score(first, tokens[0]), np.array([score(row, tokens[1]) for row in second])


def _last_token_alone(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """The first token has a log-prob too: log pi(o) is a sum over both."""
    return np.zeros_like(first), two_tokens(first, second, tokens)[1]


def _first_token_alone(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """The second token has a log-prob too: log pi(o) is a sum over both."""
    return score(first, tokens[0]), np.zeros_like(second)


def _mean_of_tokens(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """You took the mean over tokens. log pi(o) is the sum; GRPO's 1/|o| comes in lesson 04."""
    a, b = two_tokens(first, second, tokens)
    return a / 2, b / 2


def _row_of_second(
    first: Logits, second: Float[np.ndarray, "K K"], tokens: tuple[int, int]
) -> tuple[Gradient, Float[np.ndarray, "K K"]]:
    """The context of the second token is the *first* token: use row o_1 of `second`, not row o_2."""
    row = np.zeros_like(second)
    row[tokens[1]] = score(second[tokens[1]], tokens[1])
    return score(first, tokens[0]), row


_TWO_TOKENS = FunctionCheck(
    reference=two_tokens,
    typed=[
        (
            (np.zeros(2), np.zeros((2, 2)), (0, 1)),
            (np.array([0.5, -0.5]), np.array([[-0.5, 0.5], [0.0, 0.0]])),
        ),
        (
            (np.zeros(2), np.log(np.array([[1.0, 1.0], [1.0, 3.0]])), (1, 0)),
            (np.array([-0.5, 0.5]), np.array([[0.0, 0.0], [0.75, -0.75]])),
        ),
    ],
    random=lambda rng: [
        (logits, rng.normal(0, 1.5, (len(logits), len(logits))), tokens)
        for logits in _random_logits(rng)
        for tokens in list(product(range(2), range(2)))[1:3]
    ],
    mistakes=[_every_context, _last_token_alone, _first_token_alone, _mean_of_tokens, _row_of_second],
)

EXERCISES = [
    Exercise("score", "03", "code", difficulty=1, minutes=6, verify=_SCORE),
    Exercise("exact_gradient", "03", "code", difficulty=2, minutes=8, verify=_EXACT_GRADIENT),
    Exercise("bug_sign", "03", "bug", difficulty=1, minutes=4, verify=_BUG_SIGN),
    Exercise("baseline", "03", "prediction", difficulty=1, minutes=3, verify=_BASELINE),
    Exercise("estimator_variance", "03", "code", difficulty=2, minutes=10, verify=_ESTIMATOR_VARIANCE),
    Exercise("group_gradient", "03", "code", difficulty=1, minutes=6, verify=_GROUP_GRADIENT),
    Exercise("shrinkage", "03", "prediction", difficulty=2, minutes=5, verify=_SHRINKAGE),
    Exercise("two_tokens", "03", "code", difficulty=2, minutes=8, verify=_TWO_TOKENS),
]
