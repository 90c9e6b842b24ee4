"""What stays on an accelerator between merges; its copies need one (benchmarks/device.py), its bookkeeping does not."""

import torch

from pipelines.merge.resident import DeviceTensors


class Held(DeviceTensors):
    """Keeps whatever it is asked for, of 100 bytes a tensor, without a device."""

    def merge(self, *paths):
        """What a merge of some checkpoints with two tensors each had to copy."""
        self.begin(paths)
        copied = []
        for name in ("a", "b"):
            for path in paths:
                if name not in self._held.get(path, {}):
                    copied.append(path)
                    self._keep(path, name, (torch.empty(100, dtype=torch.uint8), None))
        return copied


def test_experts_that_fit_are_copied_once():
    kept = Held(torch.device("cpu"), room=800)
    assert kept.merge("base", "x", "y") == ["base", "x", "y"] * 2
    assert kept.merge("base", "y", "z") == ["z", "z"]
    assert kept.merge("base", "x", "z") == []
    assert kept.bytes == 800


def test_the_longest_unused_expert_leaves_and_none_of_the_present_merge_does():
    kept = Held(torch.device("cpu"), room=600)
    kept.merge("base", "x", "y")
    assert kept.merge("base", "y", "z") == ["z", "z"]  # x left
    assert kept.merge("base", "z") == []
    assert kept.merge("base", "x", "z") == ["x", "x"]  # y left
    assert kept.bytes == 600
    kept.room = 300  # less than one merge reads: what is held stays as long as it is used
    before = kept.bytes
    assert kept.merge("base", "x", "z") == []
    assert kept.bytes == before


def test_room_of_none_keeps_nothing_and_clearing_tells_whether_there_was_anything():
    kept = Held(torch.device("cpu"))
    assert kept.merge("base", "x") == kept.merge("base", "x") == ["base", "x"] * 2
    assert not kept.clear()
    kept.room = 400
    kept.merge("base", "x")
    assert kept.clear()
    assert kept.bytes == 0
