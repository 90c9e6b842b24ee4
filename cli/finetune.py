"""``mergebench finetune``: one expert into the store."""

from __future__ import annotations

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_all, print_cfg

HELP = """Fine-tune one expert into the store.

[bold]Examples[/]

  mergebench finetune base.path=my-base task.path=my.jsonl out=my-expert

  mergebench finetune base=qwen2_5_1_5b_instruct task.path=my.jsonl finetuning=mergopt training.epochs=2

  mergebench finetune base=tiny task=skills/add finetuning=mergopt finetuning.scale=0.0005,0.001
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="One model")
    def finetune(
        overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None
    ) -> None:
        composed = compose_all("finetune", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        from cli import console
        from pipelines.study.single import finetune_expert

        made = []
        with console.listening() as progress:
            for config, _ in composed:
                made.append(finetune_expert(config, progress))
        if json:
            return console.print_json([{"folder": m.folder, "new": m.new, **m.entry} for m in made])
        for m in made:
            state = "made" if m.new else "in the store already"
            console.out.print(f"[bold]{m.entry['name']}[/] {state}: {m.folder}", highlight=False, soft_wrap=True)
            console.out.print(
                f"  key {m.entry['key']}  " + console._shown(m.entry.get("summary", {})),
                highlight=False,
                soft_wrap=True,
            )
