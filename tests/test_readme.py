"""The README's Python blocks run as they stand, one after the other."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "alignment.png").stat().st_size > 1000
    assert (tmp_path / "dates_model" / "saved_model.pb").is_file()
    assert "compiled with XLA: forward, backward" in capsys.readouterr().out


def test_presets_are_all_named():
    from attention_zoo.models.presets import PRESETS

    text = README.read_text(encoding="utf-8")
    assert all(f"`{name.removesuffix('_paper')}`" in text for name in PRESETS)
