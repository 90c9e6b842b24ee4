"""The typed shape of every configuration; the string below a field is its help text.

``Config`` is the root: each command reads the part of it that it needs. Parameters of a merge method and of a
fine-tuning method are open dictionaries here, because their names belong to the method; they are checked against the
method's own declaration before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from omegaconf import MISSING


@dataclass
class Base:
    """The pre-trained model θ0 that all experts of a pool come from."""

    name: str = ""
    """Name shown in tables; default: the path. ``tiny`` and ``tiny_clip`` (a classifier of pictures) without a path are
    the built-in models, made on the spot."""
    path: str = ""
    """Folder, hub id or store key of the checkpoint."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub id."""
    seed: int = 0
    """Seed of the built-in model's initial weights and batches."""
    hidden: int = 96
    """Built-in model: width."""
    layers: int = 2
    """Built-in model: number of layers."""
    steps: int = 200
    """Built-in model: pre-training steps."""


@dataclass
class Images:
    """Pictures with labels, and what the classes are called: a text head is made of their names."""

    skill: Optional[str] = None
    """A built-in generated task of pictures."""
    path: Optional[str] = None
    """Hub data set id, folder (SPLIT/CLASS/picture.png, or Parquet files by split), or one Parquet file."""
    subset: Optional[str] = None
    """Configuration name of a hub data set."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub data set."""
    splits: Dict[str, str] = field(default_factory=dict)
    """What the data set calls a split, or the part of one that it is: {test: validation, validation: 'train[90%:]'}."""
    image: str = "image"
    """Column of the picture."""
    label: str = "label"
    """Column of the label: a number, or the name of a class."""
    classes: List[str] = field(default_factory=list)
    """Words of the classes, in the order of the labels; default: the data set's own names."""
    templates: List[str] = field(default_factory=lambda: ["a photo of a {}."])
    """Texts that a class's words are put into; the head is the mean of their embeddings."""


@dataclass
class Task:
    """What an expert is trained on: a built-in skill, a file, a hub data set, or pictures."""

    name: str = ""
    """Name of the expert's task in tables; default: its key in the pool, the skill, or the file's name."""
    skill: Optional[str] = None
    """A built-in generated skill."""
    path: Optional[str] = None
    """JSONL, CSV or Parquet file, folder of such files (train.jsonl, …), or hub data set id."""
    subset: Optional[str] = None
    """Configuration name of a hub data set."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub data set."""
    split: str = "train"
    """Split that is trained on, of a skill, a folder or a hub data set."""
    prompt: str = "prompt"
    """Column of the prompt."""
    completion: str = "completion"
    """Column of the completion: the only tokens that the loss is taken on."""
    separator: str = ""
    """Text put between prompt and completion (without a chat template)."""
    messages: Optional[str] = None
    """Column of chat messages; takes the place of prompt and completion."""
    images: Optional[Images] = None
    """Pictures, for a base that classifies them; takes the place of everything above but name and split."""
    chat_template: bool = False
    """Put the prompt through the tokenizer's chat template."""
    limit: Optional[int] = None
    """Train on this many examples at most (the first ones, after a seeded shuffle)."""
    epochs: Optional[float] = None
    """Epochs for this task; takes the place of training.epochs and training.steps."""
    finetuning: Dict[str, Any] = field(default_factory=dict)
    """In a pool: method and parameters of this expert alone; takes the place of the pool's."""


@dataclass
class Optimizer:
    """The base optimizer that steps at θ."""

    name: str = "adamw"
    """adamw, sgd, adafactor or adamw_8bit."""
    lr: float = 2e-5
    """Peak learning rate."""
    weight_decay: float = 0.001
    """Decoupled weight decay."""
    betas: List[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's moment decay rates."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    momentum: float = 0.0
    """SGD's momentum."""


@dataclass
class Lora:
    """Low-rank adapters; the expert is saved with the adapter merged in."""

    rank: int = 0
    """Rank r; 0 trains all weights."""
    alpha: float = 32.0
    """Scale is alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    targets: List[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of the linear layers that get an adapter."""


@dataclass
class Training:
    """How long and in what precision an expert is trained."""

    epochs: float = 3.0
    """Passes over the data; steps takes its place when set."""
    steps: Optional[int] = None
    """Optimizer steps."""
    batch_size: int = 8
    """Examples a device and micro-batch."""
    accumulation: int = 1
    """Micro-batches an optimizer step."""
    schedule: str = "cosine"
    """Learning-rate schedule: cosine, linear, constant, constant_with_warmup."""
    warmup_steps: int = 0
    """Linear warm-up, in optimizer steps."""
    clip: float = 1.0
    """Gradient-norm clipping; 0 turns it off."""
    precision: str = "float32"
    """float32, bf16 (autocast over float32 weights) or bf16_masters (bf16 weights, float32 masters beside them)."""
    max_length: Optional[int] = None
    """Longest sequence in tokens; longer examples are an error unless truncate is set. Default: the model's context."""
    truncate: bool = False
    """Cut prompts that are too long from the left (the completion is kept whole)."""
    packing: bool = False
    """Fill each sequence with several examples (attention and positions stay per example)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    ranks: int = 1
    """Processes that train an expert together, each with batch_size examples; torchrun says how many."""
    shard: bool = False
    """Divide weights, gradients and the optimizer's state over the ranks (FSDP), for what does not fit one device."""
    lora: Lora = field(default_factory=Lora)
    """Train low-rank adapters instead of all weights, where lora.rank is set."""
    save_steps: Optional[int] = None
    """Checkpoint interval in steps, for resuming; default: no intermediate checkpoints."""
    reporters: List[str] = field(default_factory=list)
    """Trainer reporters: tensorboard, wandb, mlflow (extras of the same names)."""


@dataclass
class Checkpoint:
    """A found expert: a hub id or a folder."""

    path: str = MISSING
    """Folder or hub id."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub id."""


@dataclass
class SuiteTask:
    """One lm-eval task of a suite, with everything that fixes its number."""

    task: Optional[str] = None
    """lm-eval task or group name; default: the key in the suite."""
    skill: Optional[str] = None
    """A built-in generated skill, instead of an lm-eval task name."""
    images: Optional[Images] = None
    """Pictures to classify, instead of an lm-eval task name."""
    metric: str = "acc"
    """Metric that is reported."""
    filter: str = "none"
    """lm-eval filter that the metric is read from."""
    num_fewshot: Optional[int] = None
    """Examples in the context; default: the task's own."""
    limit: Any = None
    """Documents at most, or a share of them below 1; default: the suite's."""
    split: Optional[str] = None
    """Split that is scored; default: the suite's, or the task's own."""
    select: Optional[str] = None
    """Split that a study's selection scores it on, in place of the selection's; none: it has no part in the choice."""
    documents: Optional[List[int]] = None
    """Documents that are scored, by their index in the split, in place of a limit."""
    gen_kwargs: Dict[str, Any] = field(default_factory=dict)
    """Settings of generation over those of the suite."""
    repeats: Optional[int] = None
    """Answers that are asked for each document; default: the suite's."""


@dataclass
class Judge:
    """Who compares answers with a reference's, for tasks that want a judge (alpaca_eval)."""

    annotator: str = "weighted_alpaca_eval_gpt4_turbo"
    """An annotator that alpaca_eval knows, or the folder of one (configs.yaml): its prompt, settings and model."""
    model: Optional[str] = None
    """Model that is asked in place of the annotator's."""
    address: Optional[str] = None
    """OpenAI-style address that serves this model, such as http://127.0.0.1:8000/v1; default: OPENAI_BASE_URL."""


@dataclass
class Suite:
    """lm-eval tasks, or tasks of pictures, with their metric, few-shot count, limit and split."""

    name: str = "suite"
    """Name shown in tables."""
    tasks: Dict[str, SuiteTask] = field(default_factory=dict)
    """Tasks by the name shown in tables."""
    split: Optional[str] = None
    """Split that is scored: test or validation; default: each task's own."""
    limit: Any = None
    """Documents a task at most, or a share of them below 1: the same for every model."""
    sample: str = "seeded"
    """Which documents a limit takes: a seeded choice, or the first ones as lm-eval does (first)."""
    batch_size: int = 32
    """Sequences a forward pass; halved on out-of-memory, and the size really used is recorded."""
    batch_tokens: Optional[int] = None
    """Tokens of log-likelihood requests a forward pass, with padding, in place of a number of sequences: short ones
    fill it. Halved with batch_size on out-of-memory."""
    dtype: str = "float32"
    """Dtype of the model's weights while it is scored."""
    chat_template: Any = False
    """Put prompts through the tokenizer's chat template: true, or the name of one of several."""
    system_instruction: Optional[str] = None
    """What stands before every prompt: the system's turn where there is a chat template."""
    fewshot_as_multiturn: bool = True
    """With a chat template: give examples as turns of their own, not in one turn with the question."""
    enable_thinking: Optional[bool] = None
    """Tell the chat template to let the model think, or not to; thinking wants think_end_token."""
    think_end_token: Optional[str] = None
    """Text or token number that ends thinking: only what comes after it is the answer."""
    gen_kwargs: Dict[str, Any] = field(default_factory=dict)
    """Settings of generation over the tasks' own: max_gen_toks, do_sample, temperature, top_p, until, …"""
    repeats: Optional[int] = None
    """Answers that are asked for each document; default: the tasks' own. A task's filters say what becomes of them."""
    predict_only: bool = False
    """Keep the answers and compute no metric."""
    samples: Any = 2
    """Documents a task whose prompt and answers are kept with the result: all, none or how many of the first."""
    write_out: bool = False
    """Tell the first prompt of each task."""
    judge: Judge = field(default_factory=Judge)
    """Who judges, for tasks that want a judge."""
    attn_implementation: Optional[str] = None
    """transformers' attention: sdpa, eager, flash_attention_2, …; default: its own choice."""
    generate_with: str = "transformers"
    """What writes answers: transformers, as lm-eval's own model does, or vllm (extra mergebench[vllm], a GPU)."""
    quantization: Optional[str] = None
    """Score weights in 8bit or 4bit (bitsandbytes), as they are quantised on loading; they are merged in dtype."""
    trust_remote_code: List[str] = field(default_factory=list)
    """Hub ids and folders whose own model code may run; it does not run of any other."""
    max_length: Optional[int] = None
    """Context length; default: the model's."""
    share_prefix: Any = True
    """Compute a context once for all of its options: true, where that is safe (float32: same decisions, log-likelihoods
    to 1e-4); false; always, in 16 bits too, where options that all but tie may change places."""
    include_path: Optional[str] = None
    """Folder of further lm-eval task files."""
    attack: str = "none"
    """none; deepwordbug, stresstest or bertattack:MODEL, the edit of each task's instruction that hurts the model most;
    or deepwordbug_document, …: random edits of the documents, the same for every model."""
    attack_documents: int = 100
    """Documents a task on which an attack on the instruction is searched: a seeded choice of those that are scored."""
    linearised: Any = "auto"
    """Score f(θ0) + J(θ − θ0) in place of the ordinary network: auto (experts trained by the method tangent, and merges
    of nothing else), true or false."""
    run_code: bool = False
    """Allow tasks that execute generated code."""
    isolate_code: bool = True
    """Refuse them where the code cannot be kept from files, network and other processes."""
    seed: int = 1234
    """Seed of few-shot examples, limits and attacks."""


@dataclass
class Pool:
    """A base and its experts: found ones by path, made ones by task."""

    base: Base = field(default_factory=Base)
    """The base of all experts."""
    experts: Dict[str, Checkpoint] = field(default_factory=dict)
    """Experts that exist, by name."""
    tasks: Dict[str, Task] = field(default_factory=dict)
    """Experts that are fine-tuned here, one per task."""
    peers: Dict[str, Task] = field(default_factory=dict)
    """Further tasks of a pool trained with offsets=pool or experts; their experts take part and are not merged."""
    finetuning: Dict[str, Any] = field(default_factory=lambda: {"method": "plain"})
    """How the experts of `tasks` are trained: method and its parameters."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Base optimizer of the experts of `tasks`."""
    training: Training = field(default_factory=Training)
    """Length, batch and precision of the experts of `tasks`."""
    budget: float = 1.0
    """Share of the tasks' epochs or of training.steps that is trained: 0.5 gives two passes a step the time of one."""
    seed: int = 0
    """Training seed of the experts of `tasks`."""
    seeds: List[int] = field(default_factory=list)
    """Several training seeds, in place of `seed`: experts of each, and merges of experts of one seed."""
    suite: Optional[Suite] = None
    """What this pool alone is scored on; takes the place of the study's suite."""
    reference: Optional[str] = None
    """Pool that this one is compared with; default: the plainly trained one of the same base, or the first."""


@dataclass
class Sampler:
    """Which subsets of a pool's experts are merged: the same for every method."""

    sizes: List[int] = field(default_factory=list)
    """Subset sizes; empty: only all experts together."""
    samples: int = 15
    """Distinct subsets of each size (all of them where fewer exist)."""
    subsets: List[Any] = field(default_factory=list)
    """In place of sizes, subsets by name: [a, b], or {experts: [a, b], tasks: [t]} scored on tasks of the suite only,
    or {experts: [a, b], suite: {name: s, tasks: {…}}} with a suite of its own."""
    seed: int = 0
    """Seed of the choice."""
    orders: int = 1
    """Orders in which a method that depends on the order merges a subset: the pool's, then seeded others (all where
    there are no more); orders that give the same model are one."""
    draws: int = 1
    """Seeds with which a method that draws random numbers merges a subset, shared by all methods that do not say
    draws of their own."""
    base: bool = True
    """Score the base too."""
    singles: bool = True
    """Score every expert alone too."""


@dataclass
class References:
    """Models that a study is read against, beside its bases and experts."""

    joint: bool = False
    """One model of every pool, trained plainly on all of its tasks together, as long as plain experts in all."""


@dataclass
class World:
    """What takes the place of a study's pools and suite."""

    pool: Optional[Pool] = None
    """Base, experts and training that take the place of those of every pool."""
    suite: Optional[Suite] = None
    """Suite that takes the place of the study's; its attack stays."""
    lr: float = 1.0
    """Factor on learning rates of fine-tuned experts."""
    batch_size: float = 1.0
    """Factor on their batch sizes."""
    offset: float = 1.0
    """Factor on lengths in the weights' units: MergOPT's b, μ and the first b of a running fit."""
    landscape: Dict[str, Any] = field(default_factory=dict)
    """Settings of `landscape` there."""


@dataclass
class Scale(World):
    """A small world that a study is run in, in place of its own: same methods, subsets and comparisons."""

    name: str = "full"
    """full: the study as it is written; otherwise the name of the small world."""
    images: Optional[World] = None
    """The world of studies whose suite is of pictures; default: the same."""
    overrides: List[str] = field(default_factory=list)
    """What a study that is large even there changes of itself first."""


@dataclass
class Executor:
    """Where trials run."""

    name: str = "local"
    """local, or ray (extra mergebench[ray])."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    device_map: Optional[str] = None
    """auto spreads a model larger than one GPU over all that the process sees, and host memory where these are too
    small (accelerate); default: the whole model on one device."""
    threads: Optional[int] = None
    """CPU threads of torch; default: all cores."""
    workers: Optional[int] = None
    """Ray actors (default: one per GPU, or one per two CPU cores); local: processes that train experts (default: as
    many as pay)."""
    address: Optional[str] = None
    """Address of a Ray cluster; default: this machine."""
    expert_memory: Optional[float] = None
    """GB of each GPU that keep experts between trials; default: what the model and evaluating it leave."""
    price: Optional[float] = None
    """What an hour of one worker's device costs, in dollars: plans then tell what a study costs."""
    vllm_memory: float = 0.5
    """suite.generate_with=vllm: share of the GPU's memory that vLLM may take, beside the live model."""
    retries: int = 1
    """Times a failing trial is tried again before it is set aside."""


@dataclass
class Statistics:
    """How differences are judged."""

    confidence: float = 0.95
    """Coverage of the intervals."""
    resamples: int = 2000
    """Bootstrap resamples of documents."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass
class TableView:
    """A table over a study's trials, written in the words of docs/reports.md."""

    title: str = ""
    """What the table is, and of which paper; default: its name."""
    where: Dict[str, Any] = field(default_factory=dict)
    """Trials that it is of: column: value, or a list of values."""
    blocks: Any = None
    """Column, or columns, every value of which has a block of rows."""
    average: bool = False
    """One more block: the mean over the blocks."""
    rows: List[str] = field(default_factory=lambda: ["method"])
    """Columns whose values make the rows."""
    also: List[str] = field(default_factory=list)
    """Rows above them: base, experts (each on its own task), mean_expert, best_expert, joint."""
    singles: bool = False
    """Experts stand in every row as merges of one: n = 1."""
    columns: List[str] = field(default_factory=list)
    """Columns whose values make the columns; empty: a column a measure."""
    measures: List[str] = field(default_factory=lambda: ["score"])
    """What stands in the cells."""
    reference: Any = "base"
    """What change, difference, above and ratio are taken against: base, best_expert (of all tasks together), joint, or
    {column: value} for the row that differs in nothing else."""
    mean: bool = False
    """One more column: the mean over the columns."""
    mark: bool = True
    """Best bold and second best underlined, in every column of a block."""
    band: str = "interval"
    """Bounds in the CSV: interval (bootstrap), std (over subsets, as papers give it), seeds (of training), none."""
    errors: bool = False
    """Show half of the band behind every number, in every form."""
    digits: Optional[int] = None
    """Decimals; default: those that suit the measure."""


@dataclass
class FigureView:
    """A figure over a study's trials, written in the words of docs/reports.md."""

    title: str = ""
    """What the figure is, and of which paper; default: its name."""
    kind: str = "lines"
    """lines, bars, scatter, heat, contour, radar, histogram or ranks."""
    where: Dict[str, Any] = field(default_factory=dict)
    """Trials that it is of: column: value, or a list of values."""
    x: str = "n"
    """Column or measure on the x-axis; the axes of a radar."""
    y: str = "score"
    """Measure on the y-axis; for heat and contour a column too."""
    z: str = "score"
    """heat and contour: the measure that is coloured."""
    lines: List[str] = field(default_factory=list)
    """Columns whose values make lines, groups of bars or polygons."""
    points: List[str] = field(default_factory=list)
    """Where x is a measure: columns whose values make the points of a line; empty: every subset is one."""
    panels: Any = None
    """Column, or columns, every value of which has a panel."""
    singles: bool = False
    """Experts stand in every line as merges of one: n = 1."""
    reference: Any = "base"
    """What change, difference, above and ratio are taken against, as in a table."""
    references: List[str] = field(default_factory=list)
    """Horizontal lines: base, experts (each on its own task), mean_expert, best_expert, joint."""
    band: str = "interval"
    """Bounds of a point: interval (bootstrap), std (over subsets, as papers draw it), seeds (of training), none."""
    log: bool = False
    """Logarithmic x-axis."""


@dataclass
class Views:
    """What a study's report shows, beside what every report shows."""

    tables: Dict[str, TableView] = field(default_factory=dict)
    """Tables by the name of their files: tables/NAME.csv, .md, .tex."""
    figures: Dict[str, FigureView] = field(default_factory=dict)
    """Figures by the name of their files: figures/NAME.png, .svg, .csv."""
    geometry: List[str] = field(default_factory=list)
    """Parts of the geometry of task vectors, for each pool: norms, cosines, layers, laplace."""
    landscape: List[List[str]] = field(default_factory=list)
    """Pairs of experts whose joint loss is drawn, for each pool, over the grid of `landscape`: [[a, b], …]."""


@dataclass
class Collect:
    """How what `fisher` and `regmean` need of each expert's data is collected."""

    kinds: List[str] = field(default_factory=lambda: ["fisher", "gram"])
    """What `mergebench statistics` collects: fisher (diagonal Fisher information), gram (XᵀX of layer inputs)."""
    examples: int = 256
    """Training examples of the expert's task at most: a seeded choice."""
    labels: str = "sampled"
    """Labels of the Fisher information: sampled (from the model, the definition) or data (the empirical one)."""
    task: Optional[str] = None
    """Name of the task whose statistics are taken, for a found expert of which the store holds several."""
    seed: int = 0
    """Seed of the choice of examples and of sampled labels."""


@dataclass
class Search:
    """A search for a merge method's parameters, on a split that is not the one reported."""

    sampler: str = "tpe"
    """random, grid, tpe, cmaes, nsga2 or adamerging."""
    objectives: List[str] = field(default_factory=list)
    """Several aims in place of the mean over tasks: mean, worst (the lowest task), length (the norm of the update,
    small is good), a task, or tasks joined by + (their mean). What is found is a front; not with cmaes."""
    category_experts: Optional[float] = None
    """SoCE: merge only experts that are best at a task whose scores correlate with another task's below this (over
    experts, on the tuned split); a weight each is then searched. Null: merge all."""
    trials: Optional[int] = 30
    """Configurations that are scored; empty with sampler=grid: the whole grid."""
    space: Dict[str, Any] = field(default_factory=dict)
    """What is searched, by parameter: {low, high}, with log: true, step: s or beta: [a, b]; or {choices: […]}; with
    per_expert: true each expert has a value of its own. Empty: the usual ranges of the method's main parameters."""
    estimate_from: Optional[int] = None
    """Documents of each task that a configuration is scored on; its score on all is estimated (item response theory, of
    what base and experts answered), and the `top` best are then scored on all. Null: all."""
    points: int = 5
    """Grid: values of a range that names no step."""
    startup: int = 10
    """tpe and cmaes: configurations drawn at random before the sampler learns from them; nsga2: its population."""
    batch: int = 1
    """tpe and cmaes: configurations that are proposed and scored together (for several workers)."""
    split: str = "validation"
    """Split that configurations are chosen on."""
    report: str = "test"
    """Split that the chosen one is scored on, once."""
    force: bool = False
    """Allow the same split for both; the result is then labelled as tuned on what it reports."""
    top: int = 5
    """Best configurations that are shown."""
    seed: int = 0
    """Seed of the sampler."""
    steps: int = 500
    """adamerging: steps of gradient descent."""
    lr: float = 0.001
    """adamerging: learning rate of Adam."""
    documents: int = 16
    """adamerging: documents of every task whose entropy a step looks at."""
    blocks: bool = True
    """adamerging: coefficients for every block of the model (layer-wise), or one an expert (task-wise)."""


@dataclass
class Geometry:
    """What is measured of a pool's task vectors."""

    parts: List[str] = field(default_factory=lambda: ["norms", "cosines", "layers", "laplace"])
    """norms, cosines (of whole task vectors), layers (tensors by the cosine's sign), laplace (fitted laws)."""
    sample: int = 1_000_000
    """Entries of each task vector that laws are fitted to at most: a seeded sample, the same for all."""
    seed: int = 0
    """Seed of the sample."""


@dataclass
class Landscape:
    """The joint loss of two tasks over a grid of merging coefficients."""

    pairs: List[List[str]] = field(default_factory=list)
    """Pairs of experts of every pool, by name: [[a, b], …]; empty: its first two."""
    tasks: Dict[str, Task] = field(default_factory=dict)
    """What found experts were trained on: by expert's name, or in the order of experts=[A,B]."""
    low: float = 0.0
    """Least α1 and α2."""
    high: float = 1.0
    """Largest α1 and α2."""
    points: int = 11
    """Values of each."""
    examples: int = 128
    """Training examples of a task at most: a seeded choice."""
    batch_size: int = 16
    """Examples a forward pass; changes no number."""


@dataclass
class Config:
    """The root of the configuration; each command reads the part it needs."""

    # one model
    base: Base = field(default_factory=Base)
    """Base model (finetune, merge)."""
    task: Task = field(default_factory=Task)
    """What the expert is trained on (finetune)."""
    finetuning: Dict[str, Any] = field(default_factory=dict)
    """Fine-tuning method and its parameters (finetune)."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Base optimizer (finetune)."""
    training: Training = field(default_factory=Training)
    """Length, batch and precision (finetune)."""
    experts: List[str] = field(default_factory=list)
    """Experts in order: folders, hub ids or store keys (merge, evaluate)."""
    method: Dict[str, Any] = field(default_factory=dict)
    """Merge method and its parameters (merge, evaluate)."""
    model: Optional[str] = None
    """What is scored: a folder, hub id or store key (evaluate)."""
    suite: Suite = field(default_factory=Suite)
    """What models are scored on (evaluate, sweep)."""
    dtype: str = "auto"
    """Dtype of merged weights: auto (the base's), float32, float16 or bfloat16."""
    vocab: str = "error"
    """Different vocabularies among the merged: error, base (the base's rows) or union."""
    strict: bool = True
    """Missing and extra tensors are errors; otherwise the base's stand in and extra ones are dropped."""
    out: Optional[str] = None
    """Folder that the result is written to, beside the store (most commands)."""
    out_adapter: Optional[int] = None
    """Write a LoRA adapter of this rank on the base in the place of a whole model (merge, extract)."""

    # studies
    name: Optional[str] = None
    """Name of the study (sweep)."""
    about: str = ""
    """The command that runs the study and what it reproduces."""
    pools: Dict[str, Pool] = field(default_factory=dict)
    """Pools by name (sweep)."""
    methods: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """Merge methods by the name shown in tables: method and parameters; grid (lists of values by parameter, every
    combination a merge), draws (seeds of its own), select (split on which the best of these is chosen) (sweep)."""
    sampler: Sampler = field(default_factory=Sampler)
    """Expert subsets (sweep)."""
    references: References = field(default_factory=References)
    """Models that the study is read against (sweep)."""
    attacks: List[str] = field(default_factory=list)
    """Perturbations that every model is scored under too, beside suite.attack (sweep)."""
    scale: Scale = field(default_factory=Scale)
    """The small world that the study is run in, if any: +scale=tiny (sweep)."""
    statistics: Statistics = field(default_factory=Statistics)
    """Intervals and tests (sweep, report)."""
    report: Views = field(default_factory=Views)
    """Tables and figures of the study, beside those of every report (sweep, report)."""
    collect: Collect = field(default_factory=Collect)
    """Data statistics for fisher and regmean (statistics, sweep)."""
    geometry: Geometry = field(default_factory=Geometry)
    """What is measured of task vectors (geometry)."""
    landscape: Landscape = field(default_factory=Landscape)
    """Which losses over which coefficients (landscape)."""
    search: Search = field(default_factory=Search)
    """What is tuned, how and on which split (search)."""
    keep: str = "none"
    """Merged checkpoints kept on disk: none, best or all (sweep)."""
    trackers: List[str] = field(default_factory=list)
    """Where else a study is told: wandb, mlflow, trackio (extras of the same names) (sweep)."""

    # everywhere
    executor: Executor = field(default_factory=Executor)
    """Where work runs."""
    store: str = "outputs/store"
    """Folder of checkpoints and results."""
    runs: str = "outputs/runs"
    """Folder of tables, figures and logs of a study."""
    datasets: Optional[str] = None
    """Local mirror of hub data sets, by hub name; nothing is fetched from the hub then."""
    online: bool = True
    """Allow fetching from the hub."""
    allow_pickle: bool = False
    """Read pickled .bin weights (tensors only; never other objects)."""
    seed: int = 0
    """Seed of training (finetune) and of random masks (merge, sweep)."""
