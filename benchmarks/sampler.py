"""How much faster HFSampler is than `model.generate`: `python -m benchmarks.sampler`.

Both do the same job on the tiny policy: 32 questions in, 8 sampled texts each out, one thread. Ours also
returns log-probs and entropies. The speed is tokens (up to each end-of-sequence token) per processor second.
"""

import torch

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.core.tokens import completion_mask
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.encoding import encode_prompts, left_pad
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.sets.generated import countdown_problems

PROMPTS, NUM_SAMPLES, MAX_NEW_TOKENS, REPETITIONS = 32, 8, 12, 21


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = load_policy("tiny", device="cpu")
    model, tokenizer = policy.model, policy.tokenizer
    problems = countdown_problems(PROMPTS, seed=0)
    prompts = [policy.prompt_format.problem_messages(problem.question) for problem in problems]
    sampler = HFSampler(policy, SamplingSettings(MAX_NEW_TOKENS))
    tokens: dict[str, list[int]] = {"ours": [], "generate": []}

    def ours() -> None:
        tokens["ours"].append(int(sampler.sample(prompts, NUM_SAMPLES).mask.sum()))

    def generate() -> None:
        ids, attention = left_pad(encode_prompts(tokenizer, prompts), model.device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=attention,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                num_return_sequences=NUM_SAMPLES,
            )[:, ids.shape[1] :]
        tokenizer.batch_decode(out, skip_special_tokens=True)
        tokens["generate"].append(int(completion_mask(out, tokenizer.eos_token_id).sum()))

    seconds = interleaved_seconds({"ours": ours, "generate": generate}, REPETITIONS)
    speeds = {
        name: [count / second for count, second in zip(tokens[name][1:], seconds[name], strict=True)]
        for name in tokens
    }
    ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds["generate"], strict=True)]
    record("sampler_over_generate", ratios, tokens_per_second=round(sorted(speeds["ours"])[REPETITIONS // 2]))


if __name__ == "__main__":
    main()
