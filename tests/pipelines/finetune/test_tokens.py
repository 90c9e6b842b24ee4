"""Labels on the completion alone, end-of-sequence learned, chat templates, lengths, packing."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conf.errors import UserError
from conf.schema import Task, Training
from pipelines.finetune.tokens import IGNORED, Collator, Example, PackCollator, encode, pack

TEXT = "What is two and two? The answer is four. user assistant Who wrote it? Homer."
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def bpe():
    """A byte-level tokenizer with a beginning-of-sequence token and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT] * 5, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    from tokenizers.decoders import ByteLevel
    from tokenizers.processors import TemplateProcessing

    tokenizer.decoder = ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def one(row, tokenizer, task=None, context=512, **training):
    return encode([row], tokenizer, task or Task(name="t"), Training(**training), context)[0]


def test_completion_and_end_of_sequence_are_learned(bpe):
    example = one({"prompt": "What is two and two?", "completion": " four"}, bpe)
    assert bpe.decode(example.ids) == "<s>What is two and two? four</s>"
    assert bpe.decode(example.ids[example.start :]) == " four</s>"
    batch = Collator(0)([example, Example([5, 6], 1)])
    assert batch["labels"][0].tolist() == [IGNORED] * example.start + example.ids[example.start :]
    assert batch["labels"][1].tolist() == [IGNORED, 6] + [IGNORED] * (len(example.ids) - 2)
    assert batch["input_ids"][1].tolist() == [5, 6] + [0] * (len(example.ids) - 2)


def test_a_token_across_the_boundary_is_learned(bpe):
    """Prompt and completion are tokenised together, as they will be seen: a token over both is completion."""
    whole = bpe("What is two")["input_ids"]
    example = one({"prompt": "What is t", "completion": "wo"}, bpe)
    assert example.ids == [*whole, bpe.eos_token_id]
    assert bpe.decode(example.ids[example.start :]).startswith(" t")


def test_a_slow_tokenizer_finds_the_same_boundary(bpe):
    class Slow:
        is_fast, eos_token_id = False, bpe.eos_token_id

        def __call__(self, text, **options):
            return bpe(text, **options)

    row = {"prompt": "What is two and two?", "completion": " four"}
    assert one(row, Slow()) == one(row, bpe)


def test_chat_template(bpe):
    task = Task(name="t", chat_template=True)
    example = one({"prompt": "Who wrote it?", "completion": "Homer."}, bpe, task)
    assert bpe.decode(example.ids) == "<|user|>Who wrote it?</s>\n<|assistant|>Homer.</s>"
    assert bpe.decode(example.ids[example.start :]) == "Homer.</s>"


def test_messages_learn_the_last_answer(bpe):
    messages = [
        {"role": "system", "content": "two"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "Who wrote it?"},
        {"role": "assistant", "content": "Homer."},
    ]
    example = one({"messages": messages}, bpe, Task(name="t", messages="messages"))
    assert bpe.decode(example.ids[example.start :]) == "Homer.</s>"
    assert bpe.decode(example.ids).startswith("<|system|>two</s>\n<|user|>Who?</s>\n<|assistant|>four</s>")


def test_a_tokenizer_without_template_is_told(base):
    plain = AutoTokenizer.from_pretrained(base)
    with pytest.raises(UserError, match="no chat template"):
        one({"prompt": "a", "completion": "b"}, plain, Task(name="t", chat_template=True))


def test_too_long_is_an_error_that_names_the_example(bpe):
    rows = [{"prompt": "two", "completion": " four"}, {"prompt": "two " * 50, "completion": " four"}]
    with pytest.raises(UserError, match=r"longer than 16 \(t, example 2\): set training.truncate=true"):
        encode(rows, bpe, Task(name="t"), Training(), 16)
    with pytest.raises(UserError, match="longer than 12"):
        encode(rows, bpe, Task(name="t"), Training(max_length=12), 512)


def test_truncation_cuts_the_prompt_from_the_left(bpe):
    whole = one({"prompt": "two and " * 20, "completion": " four"}, bpe)
    cut = one({"prompt": "two and " * 20, "completion": " four"}, bpe, max_length=10, truncate=True)
    assert cut.ids == whole.ids[-10:]
    assert cut.ids[cut.start :] == whole.ids[whole.start :]
    with pytest.raises(UserError, match="leaves no room"):
        one({"prompt": "two", "completion": " four" * 20}, bpe, max_length=10, truncate=True)


def test_packs_hold_every_example_once_and_fit():
    examples = [Example([7] * n, 1) for n in (3, 9, 5, 5, 2, 8, 1, 10)]
    packs = pack(examples, 10, seed=0)
    held = sorted(len(e.ids) for p in packs for e in p.examples)
    assert held == sorted(len(e.ids) for e in examples)
    assert all(len(p) <= 10 for p in packs)
    assert len(packs) == 5  # 43 tokens: no four sequences of ten could hold them
    assert pack(examples, 10, seed=0) == packs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(attention):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    examples = [Example(torch.randint(1, 50, (n,)).tolist(), n // 2) for n in (9, 4, 6, 7, 3)]
    batch = PackCollator(0)(pack(examples, 16, seed=0))
    batch.pop("tokens")
    assert batch["input_ids"].shape[0] == 2
    packed = model(**batch).loss
    alone = [model(**{k: v for k, v in Collator(0)([e]).items() if k != "tokens"}).loss for e in examples]
    counts = [len(e.ids) - e.start for e in examples]
    expected = sum(loss * n for loss, n in zip(alone, counts)) / sum(counts)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_the_loss(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    short, long = Example([5, 6, 7], 1), Example(list(range(5, 25)), 19)
    both = model(**{k: v for k, v in Collator(0)([short, long]).items() if k != "tokens"}).loss
    alone = [model(**{k: v for k, v in Collator(0)([e]).items() if k != "tokens"}).loss for e in (short, long)]
    torch.testing.assert_close(both, (2 * alone[0] + alone[1]) / 3, rtol=1e-5, atol=1e-6)
