# ruff: noqa: E501
"""The table of all systems: 101 publications and the baselines that they are compared with.

Static, so that a search for a slug finds its row, its module and its class; lazy, so that reading the table imports no
system. A row without an entry in `CLASSES` is planned.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from echelon.errors import UsageError, unknown

if TYPE_CHECKING:
    from echelon.training.trainer import Trainable

CLASSES = {
    "gcbc": "echelon.systems.offline.gcbc:GCBC",
    "gcivl": "echelon.systems.offline.gcivl:GCIVL",
    "gciql": "echelon.systems.offline.gciql:GCIQL",
    "crl": "echelon.systems.offline.crl:CRL",
    "qrl": "echelon.systems.offline.qrl:QRL",
    "hiql": "echelon.systems.offline.hiql:HIQL",
    "ota": "echelon.systems.offline.ota:OTA",
    "hilp": "echelon.systems.offline.hilp:HILP",
    "saw": "echelon.systems.offline.saw:SAW",
    "hecrl": "echelon.systems.offline.hecrl:HECRL",
    "smore": "echelon.systems.offline.smore:SMORe",
    "beso": "echelon.systems.offline.beso:BESO",
    "mage": "echelon.systems.offline.mage:MAGE",
    "act2goal": "echelon.systems.offline.act2goal:Act2Goal",
    "ghil-glue": "echelon.systems.offline.ghil_glue:GHILGlue",
    "gcbc-chunks": "echelon.systems.offline.gcbc_chunks:GCBCChunks",
    "decision-transformer": "echelon.systems.offline.decision_transformer:DecisionTransformer",
    "mocapact": "echelon.systems.offline.mocapact:MoCapAct",
    "uvd": "echelon.systems.offline.uvd:UVD",
    "sac": "echelon.systems.online.sac:SAC",
    "td3": "echelon.systems.online.td3:TD3",
    "sac-her": "echelon.systems.online.sac_her:HindsightSAC",
    "hiro": "echelon.systems.online.hiro:HIRO",
    "hac": "echelon.systems.online.hac:HAC",
    "flat-ppo": "echelon.systems.online.flat_ppo:FlatPPO",
    "dqn": "echelon.systems.online.dqn:DQN",
    "option-critic": "echelon.systems.online.option_critic:OptionCritic",
    "ppoc": "echelon.systems.online.ppoc:PPOC",
    "feudal": "echelon.systems.online.feudal:Feudal",
    "diayn": "echelon.systems.online.diayn:DIAYN",
    "diayn-manager": "echelon.systems.online.skill_manager:SkillManager",
    "ppo-scratch": "echelon.systems.online.scratch_ppo:ScratchPPO",
    "mocapact-transfer": "echelon.systems.online.mocapact_transfer:MoCapActTransfer",
    "dads": "echelon.systems.online.dads:DADS",
    "options": "echelon.systems.online.options:Options",
    "h-dqn": "echelon.systems.online.hdqn:HDQN",
    "maxq": "echelon.systems.online.maxq:MAXQ",
    "coda": "echelon.systems.agents.coda:CoDA",
    "grpo": "echelon.systems.agents.grpo:GRPO",
    "gigpo": "echelon.systems.agents.gigpo:GiGPO",
    "ppo": "echelon.systems.agents.ppo:PPO",
    "ppo-plan": "echelon.systems.agents.hiper:PPOPlan",
    "hiper": "echelon.systems.agents.hiper:HiPER",
    "hbpo": "echelon.systems.reasoning.hbpo:HBPO",
}
"""Slug of every implemented system -> "module:class"."""

# number (- for a baseline) | slug | name | arXiv | family | title
TABLE = """
  1 | gmah | GMAH | 2408.11416 | multiagent | Subgoal-based Hierarchical Reinforcement Learning for Multi-Agent Collaboration
  2 | hrl-novelty | HRL-Novelty | 2306.01476 | decisions | Hierarchical Reinforcement Learning for Modeling User Novelty-Seeking Intent in Recommender Systems
  3 | hcsp | HCSP | 2505.04317 | multiagent | Mastering Multi-Drone Volleyball through Hierarchical Co-Self-Play RL
  4 | macrohft | MacroHFT | 2406.14537 | decisions | Memory Augmented Context-aware Reinforcement Learning On High Frequency Trading
  5 | archer | ArCHer | 2402.19446 | agents | Training Language Model Agents via Hierarchical Multi-Turn RL
  6 | slim | SLIM | 2402.00823 | online | Skill Learning with Multiple Critics
  7 | skillblender | SkillBlender | 2506.09366 | online | Towards Versatile Humanoid Whole-Body Loco-Manipulation via Skill Blending
  8 | pulse | PULSE | 2310.04582 | online | Universal Humanoid Motion Representations for Physics-Based Control
  9 | cog-rethinker | Cog-Rethinker | 2510.15979 | reasoning | Hierarchical Metacognitive Reinforcement Learning for LLM Reasoning
 10 | timehc-rl | TimeHC-RL | 2505.24500 | reasoning | Temporal-aware Hierarchical Cognitive RL for Enhancing LLMs' Social Intelligence
 11 | chipseek-r1 | ChipSeek-R1 | 2507.04736 | reasoning | Generating Human-Surpassing RTL with LLM via Hierarchical Reward-Driven RL
 12 | hcam | HCAM | 2105.14039 | online | Towards mental time travel: a hierarchical memory for RL agents
 13 | heron | HERON | 2309.02632 | decisions | Deep Reinforcement Learning from Hierarchical Preference Design (arXiv title of v1: ... from Hierarchical Weak Preference Feedback)
 14 | hicra | HICRA | 2509.03646 | reasoning | Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning
 15 | rl-traversal | RL-Traversal | 2511.05933 | reasoning | Reinforcement Learning Improves Traversal of Hierarchical Knowledge in LLMs
 16 | hicogen | HiCoGen | 2511.19965 | embodied | Hierarchical Compositional Text-to-Image Generation in Diffusion Models via Reinforcement Learning
 17 | omni-r1 | Omni-R1 | 2505.20256 | embodied | Reinforcement Learning for Omnimodal Reasoning via Two-System Collaboration
 18 | confined-legged | Confined-Space Locomotion | 2403.03848 | online | Dexterous Legged Locomotion in Confined 3D Spaces with Reinforcement Learning
 19 | bresa | Bresa | 2503.21989 | online | Bio-inspired Reflexive Safe Reinforcement Learning for Contact-Rich Robotic Tasks
 20 | vlm-rl | VLM-RL | 2412.15544 | decisions | A Unified Vision Language Models and Reinforcement Learning Framework for Safe Autonomous Driving
 21 | deepresearch-survey | Deep-research RL survey | 2509.06733 | agents | Reinforcement Learning Foundations for Deep Research Systems
 22 | deeptravel | DeepTravel | 2509.21842 | agents | An End-to-End Agentic Reinforcement Learning Framework for Autonomous Travel Planning Agents
 23 | viki-r | VIKI-R | 2506.09049 | multiagent | Coordinating Embodied Multi-Agent Cooperation via Reinforcement Learning
 24 | shop-r1 | Shop-R1 | 2507.17842 | agents | Rewarding LLMs to Simulate Human Behavior in Online Shopping via Reinforcement Learning
 25 | mashost | MasHost | 2506.08507 | multiagent | MasHost Builds It All - Autonomous Multi-Agent System Directed by Reinforcement Learning
 26 | tool-star | Tool-Star | 2505.16410 | reasoning | Empowering LLM-Brained Multi-Tool Reasoner via Reinforcement Learning
 27 | ota | OTA | 2505.12737 | offline | Option-aware Temporally Abstracted Value for Offline Goal-Conditioned Reinforcement Learning
 28 | hamnet | HAMNet | 2502.20843 | online | Hierarchical and Modular Network on Non-prehensile Manipulation in General Environments
 29 | hbpo | HBPO | 2507.15844 | reasoning | Hierarchical Budget Policy Optimization for Adaptive Reasoning
 30 | hissd | HiSSD | 2503.21200 | multiagent | Learning Generalizable Skills from Offline Multi-Task Data for Multi-Agent Cooperation
 31 | damcs | DAMCS | 2502.05453 | multiagent | LLM-Powered Decentralized Generative Agents with Adaptive Hierarchical Knowledge Graph for Cooperative Planning
 32 | nse | HierNSE | 1910.03177 | representation | Read, Highlight and Summarize: A Hierarchical Neural Semantic Encoder-based Approach
 33 | hiersearch | HierSearch | 2508.08088 | agents | A Hierarchical Enterprise Deep Search Framework Integrating Local and Web Searches
 34 | hrm | HRM | 2503.13551 | reasoning | Towards Hierarchical Multi-Step Reward Models (with HNC, Hierarchical Node Compression)
 35 | mind-v | MIND-V | 2512.06628 | embodied | Hierarchical Video Generation (World Model) for Long-Horizon Robotic Manipulation with RL-based Physical Alignment
 36 | favchat | FaVChat | 2503.09158 | embodied | Hierarchical Prompt-Query Guided Facial Video Understanding with Data-Efficient GRPO
 37 | hi-agent | Hi-Agent | 2510.14388 | agents | Hierarchical Vision-Language Agents for Mobile Device Control
 38 | grip | GRiP | 2511.22172 | embodied | Guiding the Inner Eye: A Framework for Hierarchical and Flexible Visual Grounded Reasoning
 39 | id-composer | ID-Composer (published as ID-Crafter) | 2511.00511 | embodied | Multi-Subject Video Synthesis with Hierarchical Identity Preservation
 40 | skin-r1 | Skin-R1 | 2511.14900 | embodied | Toward Trustworthy Clinical Reasoning for Dermatological Diagnosis
 41 | ir2 | IR2 | 2409.04730 | multiagent | Implicit Rendezvous for Robotic Exploration Teams under Sparse Intermittent Connectivity
 42 | aim | AIM | 2507.10566 | multiagent | AI Mother Tongue - Self-Emergent Communication in MARL via Endogenous Symbol Systems
 43 | oni | ONI | 2410.23022 | decisions | Online Intrinsic Rewards for Decision Making Agents from Large Language Model Feedback
 44 | airllm | AirLLM | 2507.11515 | decisions | Diffusion Policy-based Adaptive LoRA for Remote Fine-Tuning of LLM over the Air
 45 | unifygeo | UnifyGeo | 2505.07622 | embodied | A Unified Hierarchical Framework for Fine-grained Cross-view Geo-localization over Large-scale Scenarios
 46 | volleybots | VolleyBots | 2502.01932 | multiagent | A Testbed for Multi-Drone Volleyball Game Combining Motion Control and Strategic Play
 47 | table-tennis | Table Tennis | 2408.03906 | online | Achieving Human Level Competitive Robot Table Tennis
 48 | mocapact | MoCapAct | 2208.07363 | offline | A Multi-Task Dataset for Simulated Humanoid Control
 49 | halo-dexgarment | HALO / DexGarmentLab | 2505.11032 | online | Dexterous Garment Manipulation Environment with Generalizable Policy
 50 | robomatrix | RoboMatrix | 2412.00171 | embodied | A Skill-centric Hierarchical Framework for Scalable Robot Task Planning and Execution in Open-World
 51 | gigpo | GiGPO | 2505.10978 | agents | Group-in-Group Policy Optimization for LLM Agent Training
 52 | bfs-prover-v2 | BFS-Prover-V2 | 2509.06493 | reasoning | Scaling up Multi-Turn Off-Policy RL and Multi-Agent Tree Search for LLM Step-Provers
 53 | meta-explore | Meta-Explore | 2303.04077 | embodied | Exploratory Hierarchical Vision-and-Language Navigation Using Scene Object Spectrum Grounding
 54 | tgpo | TGPO | 2510.00225 | online | Temporal Grounded Policy Optimization for Signal Temporal Logic Tasks
 55 | openha | OpenHA | 2509.13347 | embodied | A Series of Open-Source Hierarchical Agentic Models in Minecraft (Chain of Action)
 56 | hamster | HAMSTER | 2502.05485 | embodied | Hierarchical Action Models For Open-World Robot Manipulation
 57 | thor | THOR | 2509.13761 | reasoning | Tool-Integrated Hierarchical Optimization via RL for Mathematical Reasoning
 58 | hla | HLA | 2312.15224 | multiagent | LLM-Powered Hierarchical Language Agent for Real-time Human-AI Coordination
 59 | lserve | LServe | 2502.14866 | representation | Efficient Long-sequence LLM Serving with Unified Sparse Attention
 60 | mobility-vla | Mobility VLA | 2407.07775 | embodied | Multimodal Instruction Navigation with Long-Context VLMs and Topological Graphs
 61 | code-as-policies | Code as Policies | 2209.07753 | embodied | Language Model Programs for Embodied Control
 62 | ares | ARES | 2510.08457 | reasoning | Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping (AEPO)
 63 | sims | SIMS | 2411.19921 | online | Simulating Stylized Human-Scene Interactions with Retrieval-Augmented Script Generation
 64 | datarus-r1 | Datarus-R1 | 2508.13382 | reasoning | An Adaptive Multi-Step Reasoning LLM for Automated Data Analysis
 65 | mvafgr | MVAFGR / MAFR | 2206.01153 | embodied | Multi-View Active Fine-Grained (Visual) Recognition
 66 | beso | BESO | 2304.02532 | offline | Goal-Conditioned Imitation Learning using Score-based Diffusion Policies
 67 | yay-robot | YAY Robot | 2403.12910 | embodied | Yell At Your Robot: Improving On-the-Fly from Language Corrections
 68 | mobile-agent-e | Mobile-Agent-E | 2501.11733 | embodied | Self-Evolving Mobile Assistant for Complex Tasks
 69 | trimpi | TriMPI | 2510.09474 | reasoning | Multimodal Policy Internalization for Conversational Agents (with PolicyRollout)
 70 | llm-economist | LLMEconomist | 2507.15815 | multiagent | LLM Economist - Large Population Models and Mechanism Design in Multi-Agent Generative Simulacra
 71 | portal | PORTAL | 2503.13356 | embodied | Agents Play Thousands of 3D Video Games
 72 | rt-h | RT-H | 2403.01823 | embodied | Action Hierarchies Using Language
 73 | hle | HLE / PL-FMS | 2308.14374 | representation | Online Continual Learning on Hierarchical Label Expansion
 74 | d3s | D3S | 2509.22115 | reasoning | Learning More with Less: Dynamic Dual-Level Down-Sampling for Efficient Policy Optimization
 75 | articulated-tools | ArtTool-HRL | 2507.06822 | online | Hierarchical Reinforcement Learning for Articulated Tool Manipulation with Multifingered Hand
 76 | hiclr | HiCLR | 2211.13466 | representation | Hierarchical Consistent Contrastive Learning for Skeleton-Based Action Recognition with Growing Augmentations
 77 | worldrft | WorldRFT | 2512.19133 | decisions | Latent World Model Planning with Reinforcement Fine-Tuning for Autonomous Driving
 78 | hecrl | HECRL | 2602.02722 | offline | Hierarchical Entity-centric Reinforcement Learning with Factored Subgoal Diffusion
 79 | saw | SAW | 2505.14975 | offline | Flattening Hierarchies with Policy Bootstrapping (Subgoal Advantage-Weighted Policy Bootstrapping)
 80 | himac | HiMAC | 2603.00977 | agents | Hierarchical Macro-Micro Learning for Long-Horizon LLM Agents
 81 | hiper | HiPER | 2602.16165 | agents | Hierarchical Reinforcement Learning with Explicit Credit Assignment for Large Language Model Agents
 82 | ghil-glue | GHILGlue | 2410.20018 | offline | Hierarchical Control with Filtered Subgoal Images
 83 | safe-mapf-gcrl | SafeMAPF-GCRL | 2502.17813 | multiagent | Safe Multi-Agent Navigation guided by Goal-Conditioned Safe Reinforcement Learning
 84 | hilp | HILP | 2402.15567 | offline | Foundation Policies with Hilbert Representations
 85 | vsc-rl | VSC-RL | 2502.07949 | agents | Advancing Autonomous Vision-Language Agents with Variational Subgoal-Conditioned Reinforcement Learning
 86 | exit | ExIt | 2509.04575 | reasoning | Bootstrapping Task Spaces for Self-Improvement (Exploratory Iteration)
 87 | uvd | UVD | 2310.08581 | offline | Universal Visual Decomposer: Long-Horizon Manipulation Made Easy
 88 | chatshopbuddy | ChatShopBuddy | 2603.06065 | agents | Towards Reliable Conversational Shopping Agents via Reinforcement Learning
 89 | internal-rl | InternalRL | 2512.20605 | online | Emergent temporal abstractions in autoregressive models enable hierarchical reinforcement learning
 90 | parl | PARL | 2308.02585 | decisions | A Unified Framework for Policy Alignment in Reinforcement Learning
 91 | gc-reward | GC-RM | 2407.13887 | reasoning | Learning Goal-Conditioned Representations for Language Reward Models
 92 | goal-directedness | GoalEval | 2602.08964 | reasoning | A Behavioural and Representational Evaluation of Goal-Directedness in Language Model Agents
 93 | smore | SMORe | 2311.02013 | offline | Score Models for Offline Goal-Conditioned Reinforcement Learning
 94 | spa-rl | SPA-RL | 2505.20732 | agents | Reinforcing LLM Agents via Stepwise Progress Attribution
 95 | expressivity | Expressivity | 2310.11840 | decisions | On The Expressivity of Objective-Specification Formalisms in Reinforcement Learning
 96 | mage | MAGE | 2602.23770 | offline | Multi-scale Autoregressive Generation for Offline Reinforcement Learning
 97 | coda | CoDA | 2512.12716 | agents | A Context-Decoupled Hierarchical Agent with Reinforcement Learning
 98 | igpo | IGPO | 2510.14967 | agents | Information Gain-based Policy Optimization
 99 | rlvmr | RLVMR | 2507.22844 | agents | Reinforcement Learning with Verifiable Meta-Reasoning Rewards for Robust Long-Horizon Agents
100 | act2goal | Act2Goal | 2512.23541 | offline | From World Model To General Goal-conditioned Policy
101 | subrl | SubRL / SubPO | 2307.13372 | decisions | Submodular Reinforcement Learning
  - | gcbc | GCBC | 1912.06088 | offline | Goal-conditioned behavioural cloning (Learning to Reach Goals via Iterated Supervised Learning)
  - | gcbc-chunks | GCBCChunks | 2304.13705 | offline | Goal-conditioned behavioural cloning of action chunks (Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware)
  - | decision-transformer | DecisionTransformer | 2106.01345 | offline | Decision Transformer: Reinforcement Learning via Sequence Modeling
  - | gcivl | GCIVL | 2410.20092 | offline | Goal-conditioned implicit V-learning (OGBench: Benchmarking Offline Goal-Conditioned RL)
  - | gciql | GCIQL | 2110.06169 | offline | Goal-conditioned implicit Q-learning (Offline Reinforcement Learning with Implicit Q-Learning)
  - | crl | CRL | 2206.07568 | offline | Contrastive Learning as Goal-Conditioned Reinforcement Learning
  - | qrl | QRL | 2304.01203 | offline | Optimal Goal-Reaching Reinforcement Learning via Quasimetric Learning
  - | hiql | HIQL | 2307.11949 | offline | HIQL: Offline Goal-Conditioned RL with Latent States as Actions
  - | sac | SAC | 1812.05905 | online | Soft Actor-Critic Algorithms and Applications
  - | td3 | TD3 | 1802.09477 | online | Addressing Function Approximation Error in Actor-Critic Methods
  - | sac-her | HindsightSAC | 1707.01495 | online | SAC with hindsight goals (Hindsight Experience Replay)
  - | hiro | HIRO | 1805.08296 | online | Data-Efficient Hierarchical Reinforcement Learning
  - | hac | HAC | 1712.00948 | online | Learning Multi-Level Hierarchies with Hindsight
  - | flat-ppo | FlatPPO | 1707.06347 | online | Proximal Policy Optimization Algorithms
  - | dqn | DQN | 1509.06461 | online | Deep Reinforcement Learning with Double Q-learning
  - | option-critic | OptionCritic | 1609.05140 | online | The Option-Critic Architecture
  - | ppoc | PPOC | 1712.00004 | online | Learnings Options End-to-End for Continuous Action Tasks
  - | feudal | Feudal | 1703.01161 | online | FeUdal Networks for Hierarchical Reinforcement Learning
  - | diayn | DIAYN | 1802.06070 | online | Diversity is All You Need: Learning Skills without a Reward Function
  - | diayn-manager | SkillManager | 1802.06070 | online | A manager over frozen skills (Diversity is All You Need)
  - | ppo-scratch | ScratchPPO | 1707.06347 | online | PPO over vectors from a chosen initial deviation (Proximal Policy Optimization Algorithms)
  - | mocapact-transfer | MoCapActTransfer | 2208.07363 | online | PPO over the latents of a frozen decoder (MoCapAct, transfer)
  - | dads | DADS | 1907.01657 | online | Dynamics-Aware Unsupervised Discovery of Skills
  - | options | Options | - | online | Between MDPs and semi-MDPs: A framework for temporal abstraction in reinforcement learning
  - | h-dqn | HDQN | 1604.06057 | online | Hierarchical Deep Reinforcement Learning: Integrating Temporal Abstraction and Intrinsic Motivation
  - | maxq | MAXQ | cs/9905014 | online | Hierarchical Reinforcement Learning with the MAXQ Value Function Decomposition
  - | grpo | GRPO | 2402.03300 | agents | Group-relative policy optimisation over episodes (DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models)
  - | ppo | PPO | 1707.06347 | agents | PPO with a critic of turns or tokens (Proximal Policy Optimization Algorithms)
  - | ppo-plan | PPOPlan | 1707.06347 | agents | PPO on the program of HiPER: switch, subgoal, action
"""


@dataclass(frozen=True)
class Row:
    """One system: `number` is its place among the 101 (None for a baseline), `target` its "module:class" (None: planned).

    `arxiv` is "-" for what is older than that.
    """

    number: int | None
    slug: str
    name: str
    arxiv: str
    family: str
    title: str
    target: str | None

    @property
    def module(self) -> str | None:
        """Dotted name of the module that implements the system."""
        return self.target.partition(":")[0] if self.target else None


@cache
def rows() -> dict[str, Row]:
    """All rows by slug, in the table's order."""
    table = {}
    for line in TABLE.strip().splitlines():
        number, slug, name, arxiv, family, title = (cell.strip() for cell in line.split("|"))
        place = None if number == "-" else int(number)
        table[slug] = Row(place, slug, name, arxiv, family, title, CLASSES.get(slug))
    return table


def names() -> tuple[str, ...]:
    """Slugs of the implemented systems."""
    return tuple(CLASSES)


def find(slug: str) -> Row:
    """The row of an implemented system. Raises UsageError for a planned or an unknown one."""
    row = rows().get(slug)
    if row is None:
        raise unknown("system", slug, names())
    if row.target is None:
        raise UsageError(f"system '{slug}' (arXiv {row.arxiv}) is planned; implemented: {', '.join(names())}")
    return row


def load(slug: str) -> type[Trainable]:
    """Import the system's module and return its class; its configuration is the class's `Config`.

    Raises UsageError for a planned or an unknown system.
    """
    module, _, name = str(find(slug).target).partition(":")
    return getattr(importlib.import_module(module), name)
