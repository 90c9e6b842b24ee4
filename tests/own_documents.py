"""Benchmark files of our own making, in the form of the real ones: what the tests read where those do not stand beside.

``write(folder)`` lays out one folder of JSONL files per task; ``mirror(data, folder)`` makes of it a folder in which
stock task names load offline. Every sentence is made from the words below.
"""

import json
import random
from pathlib import Path

ANIMALS = [
    # name, kind, where it lives, what it eats
    ("trout", "fish", "a cold river", "small insects"), ("owl", "bird", "an old barn", "mice"),
    ("camel", "mammal", "the desert", "dry shrubs"), ("frog", "amphibian", "a pond", "flies"),
    ("lizard", "reptile", "warm rocks", "beetles"), ("bee", "insect", "a hive", "nectar and pollen"),
    ("whale", "mammal", "the open ocean", "krill"), ("penguin", "bird", "an icy coast", "squid"),
    ("shark", "fish", "a coral reef", "other fish"), ("newt", "amphibian", "a wet meadow", "worms"),
    ("tortoise", "reptile", "a dry grassland", "leaves"), ("ant", "insect", "a nest under stones", "seeds"),
]  # fmt: skip
PEOPLE = ["Anna", "Boris", "Chiara", "Dario", "Esther", "Farid", "Greta", "Hugo", "Imani", "Jonas", "Katya", "Luis"]
OBJECTS = ["ladder", "umbrella", "bicycle", "lantern", "kettle", "suitcase", "hammer", "notebook", "tent", "violin"]
ACTIONS = [
    # what is done, how it goes on, what it is called
    ("kneads the dough on a floured table", "puts it into a hot oven", "Baking bread"),
    ("ties the boat to a wooden post", "steps onto the pier", "Mooring a boat"),
    ("sharpens the pencil over a bin", "begins to draw a tree", "Drawing"),
    ("pulls the weeds from the soil", "waters the young plants", "Gardening"),
    ("pumps up the front tyre", "rides down the street", "Repairing a bike"),
    ("rinses the brush under the tap", "lays it on a towel to dry", "Painting a wall"),
]


def pick(draw, correct, others, count=4):
    """Choices in random order, and the place of the right one."""
    choices = [correct, *draw.sample([o for o in dict.fromkeys(others) if o != correct], count - 1)]
    draw.shuffle(choices)
    return choices, choices.index(correct)


def question(draw):
    name, kind, home, food = draw.choice(ANIMALS)
    strangers = [a[0] for a in ANIMALS if a[1] != kind]
    return draw.choice([
        (f"In {draw.choice(['spring', 'autumn', 'a dry year'])}, which of these animals is a {kind}?", name, strangers),
        (f"Where would {draw.choice(PEOPLE)} most likely find a {name}?", home, [a[2] for a in ANIMALS]),
        (f"What does a {name} mainly eat (it weighs {draw.randint(2, 90)} units)?", food, [a[3] for a in ANIMALS]),
    ])  # fmt: skip


def arc(draw, number):
    asked, correct, others = question(draw)
    choices, right = pick(draw, correct, others)
    return {
        "id": f"own-{number}",
        "question": asked,
        "choices": {"text": choices, "label": list("ABCD")},
        "answerKey": "ABCD"[right],
    }


def mmlu(draw, number, subject):
    asked, correct, others = question(draw)
    choices, right = pick(draw, correct, others)
    return {"question": asked, "subject": subject, "choices": choices, "answer": right}


def hellaswag(draw, number):
    doing, then, label = draw.choice(ACTIONS)
    endings, right = pick(draw, f"{then}.", [f"{a[1]}." for a in ACTIONS])
    context = (
        f"{draw.choice(PEOPLE)} {doing}. [step] A {draw.choice(OBJECTS)} lies beside. {draw.choice(['she', 'he'])}"
    )
    return {
        "ind": number,
        "activity_label": label,
        "ctx_a": context,
        "ctx_b": "",
        "endings": endings,
        "label": str(right),
        "split": "val",
    }


def winogrande(draw, number):
    one, two = draw.sample(PEOPLE, 2)
    thing, lends = draw.choice(OBJECTS), draw.random() < 0.5
    why = (
        f"had {draw.randint(2, 9)} of them at home" if lends else f"had lost the old one {draw.randint(2, 9)} days ago"
    )
    sentence = f"{one} gave {two} a {thing} because _ {why}."
    return {"sentence": sentence, "option1": one, "option2": two, "answer": "1" if lends else "2"}


def boolq(draw, number):
    name, kind, home, food = draw.choice(ANIMALS)
    asked = draw.choice([kind, *(a[1] for a in ANIMALS)])
    passage = (
        f"The {name} lives in or near {home}. It is a {kind} and eats {food}; in {1900 + number} {draw.choice(PEOPLE)}"
    )
    passage += f" counted {draw.randint(3, 80)} of them and drew each one into a {draw.choice(OBJECTS)}-sized book."
    return {"passage": passage, "question": f"is the {name} a {asked}", "idx": number, "label": int(asked == kind)}


def gsm8k(draw, number):
    who, thing, a, b = draw.choice(PEOPLE), draw.choice(OBJECTS), draw.randint(2, 20), draw.randint(2, 9)
    asked = f"{who} has {a} boxes with {b} {thing}s each and gives {a} {thing}s away. How many are left?"
    answer = f"There are {a} * {b} = <<{a}*{b}={a * b}>>{a * b} {thing}s.\n{a * b} - {a} = <<{a * b}-{a}={a * b - a}>>"
    return {"question": asked, "answer": f"{answer}{a * b - a} are left.\n#### {a * b - a}"}


def sst2(draw, number):
    good = draw.random() < 0.5
    words = ("warm", "clever", "moving", "joyful") if good else ("dull", "clumsy", "tired", "noisy")
    first, second = draw.sample(words, 2)
    thing, animal = draw.choice(OBJECTS), draw.choice(ANIMALS)[0]
    sentence = f"a {first} and {second} film about a {thing} and {draw.randint(2, 30)} {animal}s"
    return {"sentence": sentence, "label": int(good), "idx": number}


def cola(draw, number):
    words = f"{draw.choice(PEOPLE)} carried the {draw.choice(OBJECTS)} to the {draw.choice(OBJECTS)}".split()
    good = draw.random() < 0.5
    if not good:
        words[1:4] = words[3:0:-1]
    return {"sentence": " ".join(words) + ".", "label": int(good)}


def program(draw, number, humaneval):
    name, a = f"add_{number}", number + 1
    told = f"Write a function that adds {a} to a number and doubles the sum."
    tests = [f"assert {name}({x}) == {2 * (x + a)}" for x in (0, 3, 10)]
    if not humaneval:
        code = f"def {name}(x):\r\n    return 2 * (x + {a})"
        return {"task_id": number, "text": told, "code": code, "test_list": tests, "test_setup_code": ""}
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(x: int) -> int:\n    """ {told}\n    >>> {name}(3)\n    {2 * (3 + a)}\n    """\n',
        "entry_point": name,
        "canonical_solution": f"    return 2 * (x + {a})\n",
        "test": "\n\ndef check(candidate):\n" + "".join(f"    {t.replace(name, 'candidate')}\n" for t in tests),
    }


def trace(draw, number, name):
    asked, correct, others = question(draw)
    choices, right = pick(draw, correct, others, 3)
    doing, then, _ = draw.choice(ACTIONS)
    who = draw.choice(PEOPLE)
    if name == "trace_scienceqa":
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABC", choices))
        head = "Choose an answer for the following question and give your reasons.\n\nQuestion:\n"
        return {"prompt": f"{head}{asked}\n{listed}\n\nAnswer:", "answer": f"{'ABC'[right]}\nIt is {correct}."}
    if name == "asset_standin_20minuten":
        text = f"Having {number} minutes to spare, {who}, a person of few words, {doing} and subsequently {then}."
        head = "Provide a simplified version of the following paragraph.\n\nParagraph:\n"
        return {"prompt": f"{head}{text}\n\nSimplification:", "answer": f"{who} {doing}. Then {who} {then}."}
    if name == "qmsum_standin_meetingbank":
        head = "Write a summary of the following meeting transcripts.\nMeeting transcripts:\n"
        return {
            "prompt": f"{head}{who}: {asked}\nChair: {correct}.\nSummary:",
            "answer": f"{who} asked about {correct}.",
        }
    if name.startswith("trace_numglue"):
        row = gsm8k(draw, number)
        prompt = f"Solve the following math problem.\nQuestion:\n{row['question']}\nAnswer:"
        return {"prompt": prompt, "answer": row["answer"].split("#### ")[1]}
    letters = "A. for, B. against, C. neutral" if name == "trace_cstance" else "A. dovish, B. hawkish, C. neutral"
    prompt = f"What is the stance of the following text? {letters}. Choose one from A, B and C.\nText:\n"
    return {
        "prompt": f"{prompt}{who} says: {correct} is what matters in {2000 + number}.\nStance:",
        "answer": "ABC"[right],
    }


def write(folder, count=120):
    """All files, below ``folder``; the same every time."""
    common = {"train": count, "validation": count, "test": count}
    for task in (arc, hellaswag, winogrande, boolq, gsm8k, sst2, cola):
        _write(folder / {"arc": "arc_easy"}.get(task.__name__, task.__name__), common, task)
    for subject in subjects():
        _write(folder / "mmlu" / subject, {"dev": 5, "test": 12}, mmlu, subject)
    _write(folder / "humaneval", {"test": 5}, program, True)
    _write(folder / "mbpp", {"prompt": 10, "test": 5, "train": 5, "validation": 5}, program, False)
    for name in ("cstance", "fomc", "scienceqa", "numglue_cm", "numglue_ds"):
        _write(folder / f"trace_{name}", common, trace, f"trace_{name}")
    for name in ("qmsum_standin_meetingbank", "asset_standin_20minuten"):
        _write(folder / name, common, trace, name)


def subjects():
    """MMLU's subjects, from lm-eval's own task files."""
    import lm_eval.tasks

    files = (Path(lm_eval.tasks.__path__[0]) / "mmlu" / "default").glob("mmlu_*.yaml")
    return sorted(file.stem.removeprefix("mmlu_") for file in files)


def _write(folder, splits, make, *more):
    folder.mkdir(parents=True)
    for split, count in splits.items():
        draw = random.Random(f"{folder.name} {split}")
        rows = (json.dumps(make(draw, number, *more), ensure_ascii=False) + "\n" for number in range(count))
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")


HUB = {
    "allenai/ai2_arc": {"ARC-Easy": "arc_easy"},
    "Rowan/hellaswag": {"default": "hellaswag"},
    "allenai/winogrande": {"winogrande_xl": "winogrande"},
    "aps/super_glue": {"boolq": "boolq"},
    "openai/gsm8k": {"main": "gsm8k"},
    "nyu-mll/glue": {"sst2": "sst2", "cola": "cola"},
}


def mirror(data, folder):
    """The data sets under the names that they have on the hub, each with a page that lists its files."""
    mmlu_folders = {path.name: f"mmlu/{path.name}" for path in (data / "mmlu").iterdir()}
    for repository, configs in {**HUB, "cais/mmlu": mmlu_folders}.items():
        page = "---\nconfigs:\n"
        (folder / repository).mkdir(parents=True)
        for config, source in configs.items():
            (folder / repository / config).symlink_to(data / source)
            page += f"- config_name: {config}\n  data_files:\n"
            for file in sorted((data / source).glob("*.jsonl")):
                page += f"  - split: {file.stem}\n    path: {config}/{file.name}\n"
        (folder / repository / "README.md").write_text(page + "---\n")
