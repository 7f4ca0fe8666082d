"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

from igrpo_kit import dead_groups

assert draft_rewards[0, best] == draft_rewards.max(), "the best draft has the highest reward"
assert advantages.tolist() == [[0.5, 0.5, -1.5, 0.5]], "three correct, one incorrect"
assert reward_of("<answer>26</answer>? No: <answer>33</answer>") == 0, "the last answer counts"
assert not dead_groups(rewards).any(), "correct and incorrect in one group: it contributes a gradient"
