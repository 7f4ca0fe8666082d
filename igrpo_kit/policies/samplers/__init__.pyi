# All public names of this package. Type checkers read this list; each module is imported on first use.
from .encoding import encode_prompts as encode_prompts
from .hf import HFSampler as HFSampler
from .sampler import Sampler as Sampler
from .sampler import Samples as Samples
from .sampler import SamplingSettings as SamplingSettings
from .scripted import ScriptedSampler as ScriptedSampler
from .vllm import VLLMSampler as VLLMSampler
