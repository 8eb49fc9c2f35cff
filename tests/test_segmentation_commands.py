"""predict, evaluate and export of models that segment, and export of networks of convolutions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import tiny_image_folder, tiny_image_model
from tiny_maps import CLASSES, COLOURS, VOID_ID, shapes, tiny_map_recipe, tiny_segmenter
from tiny_runs import Told
from typer.testing import CliRunner

import potstill
from potstill.cli import app
from potstill.errors import DataError, ExportError, ModelError
from potstill.evaluating import evaluate_folder
from potstill.export import OnnxModel
from potstill.prediction import load_classifier, predict
from potstill.shipping import export_folder
from potstill.tasks import pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run, and the folder of its data."""
    folder = tmp_path_factory.mktemp("segmented")
    recipe = tiny_map_recipe(folder, {"evaluate": {"cost": False}})
    return potstill.run(recipe, folder / "run"), Path(recipe["data"]["name"])


def evaluated(model: Path, data: Path, teacher: Path | None = None, **given: Any) -> dict[str, str]:
    return dict(evaluate_folder(model, str(data), "test", teacher, {}, 128, Told(), **given))


def test_evaluate_says_what_the_run_said(made: Any) -> None:
    outcome, data = made
    found = evaluated(outcome.student, data, outcome.folder / "teacher")
    student = outcome.results["models"][-1]
    assert found["rows"] == "8 of test"
    assert float(found["Mean IoU"].split()[0]) == pytest.approx(100 * student["metrics"]["mean_iou"]["mean"], abs=0.006)
    agreement = float(found["Agreement with teacher"].split()[0])
    assert agreement == pytest.approx(100 * student["agreement"]["mean"], abs=0.006)
    assert float(found["KL to teacher"]) == pytest.approx(student["kl"]["mean"], abs=6e-5)
    assert "Mean IoU, less teacher" in found


def test_what_ids_mean_comes_from_the_data_else_from_the_model(made: Any, tmp_path: Path) -> None:
    outcome, data = made
    described = json.loads((outcome.student / "classes.json").read_text())
    assert described == {"names": list(CLASSES), "palette": [list(c) for c in COLOURS], "void": [VOID_ID]}
    bare = tmp_path / "data"
    (bare / "test").mkdir(parents=True)
    for kind in ("images", "labels"):
        (bare / "test" / kind).symlink_to(data / "test" / kind)
    whole = evaluated(outcome.student, data)
    assert evaluated(outcome.student, bare) == whole
    (bare / "classes.json").write_text(json.dumps({"names": ["ground", "disc", "square"], "void": [VOID_ID]}))
    with pytest.raises(ModelError, match="The model doesn't know the classes of the label maps, or in another order"):
        evaluated(outcome.student, bare)
    (bare / "classes.json").unlink()
    with pytest.raises(DataError, match="ids that are no class's"):
        evaluated(outcome.student, bare, void=[9])


def test_predict_gives_shares_and_maps(made: Any, tmp_path: Path) -> None:
    outcome, _ = made
    file = tmp_path / "one.jpg"
    shapes(3, (50, 70))[0].save(file)
    ((*said,),) = predict(outcome.student, [str(file)], maps=tmp_path / "maps")
    assert sum(share for _, share in said) == pytest.approx(1.0) and said == sorted(said, key=lambda pair: -pair[1])
    with Image.open(tmp_path / "maps" / "one.png") as picture:
        ids, palette = np.asarray(picture), picture.getpalette()
        assert picture.size == (70, 50)
    assert palette is not None and palette[:12] == [channel for colour in COLOURS for channel in colour]
    for name, share in said:
        assert (ids == CLASSES.index(name)).mean() == pytest.approx(share)
    _, model, reader = load_classifier(outcome.student)
    with torch.no_grad(), Image.open(file) as picture:
        logits = model(pixel_values=reader(picture)[None]).logits
    expected = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear").argmax(1)[0]
    np.testing.assert_array_equal(ids, expected)
    result = CliRunner().invoke(app, ["predict", str(outcome.student), str(file)])
    assert result.output == ", ".join(f"{name} {share:.3f}" for name, share in said) + f"\t{file}\n"


def test_maps_that_cannot_be_written_are_told_before_anything_is(made: Any, tmp_path: Path) -> None:
    outcome, _ = made
    with pytest.raises(DataError, match=r"Several images would have a map of one name.*one.png"):
        predict(outcome.student, ["a/one.jpg", "b/one.png"], maps=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    classifier = Path(tiny_image_model(tmp_path / "model"))
    with pytest.raises(DataError, match="Only models of semantic segmentation give maps"):
        predict(classifier, ["a.png"], maps=tmp_path / "maps")


def test_a_map_never_takes_the_place_of_an_image(made: Any, tmp_path: Path) -> None:
    outcome, _ = made
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        shapes(3)[0].save(file)
    before = [file.read_bytes() for file in files]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "one.png").symlink_to(files[0])
    for maps in (tmp_path, tmp_path / "maps"):
        with pytest.raises(DataError, match=r"map would take the place of an image.*one.png.*another --maps folder"):
            predict(outcome.student, [str(file) for file in files], maps=maps)
    with pytest.raises(DataError, match=r"map would take the place of an image.*two.png"):
        predict(outcome.student, [str(tmp_path / "maps" / "one.png"), str(files[1])], maps=tmp_path)
    assert [file.read_bytes() for file in files] == before and not (tmp_path / "maps" / "two.png").exists()


def test_predict_decodes_an_image_once(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = made
    shapes(3)[0].save(tmp_path / "one.png")
    read, image_bytes = [], pictures.image_bytes
    monkeypatch.setattr(pictures, "image_bytes", lambda stored: read.append(stored) or image_bytes(stored))
    predict(outcome.student, [str(tmp_path / "one.png")], maps=tmp_path / "maps")
    assert len(read) == 1


def test_classes_beside_a_model_are_its_own(tmp_path: Path) -> None:
    folder = Path(tiny_segmenter(tmp_path / "model"))
    task, _, _ = load_classifier(folder)
    assert task.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    (folder / "classes.json").write_text(json.dumps({"names": ["one", "two"]}))
    with pytest.raises(ModelError, match=r"The classes.json in .* isn't this model's"):
        load_classifier(folder)


@pytest.mark.slow
def test_a_segmentation_is_exported_from_its_folder(made: Any, tmp_path: Path) -> None:
    outcome, data = made
    exact, int8 = export_folder(outcome.student, tmp_path, ["onnx", "onnx-int8"], str(data))
    assert exact["max_logit_difference"] < 1e-3 and exact["agreement"] > 0.999
    assert int8["max_logit_difference"] > 2 * exact["max_logit_difference"] and OnnxModel(int8["file"]).takes_any_size


@pytest.mark.slow
def test_convolutions_become_int8_by_images_that_are_named(tmp_path: Path) -> None:
    network = Path(tiny_image_model(tmp_path / "network", "mobilenet_v2"))
    data = tiny_image_folder(tmp_path / "data")
    with pytest.raises(ExportError, match=r"--data FOLDER"):
        export_folder(network, tmp_path / "out", ["onnx-int8"])
    (int8,) = export_folder(network, tmp_path / "out", ["onnx-int8"], data)
    assert Path(int8["file"]).exists() and not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.slow
def test_an_export_replaces_only_what_is_asked_for_and_only_whole(tmp_path: Path) -> None:
    """The folder that it writes to by default holds the run's own files."""
    network, vit = (Path(tiny_image_model(tmp_path / name, name)) for name in ("mobilenet_v2", "vit"))
    out = tmp_path / "export"
    out.mkdir()
    for name in ("model.onnx", "model-int8.onnx"):
        (out / name).write_bytes(b"the run's own")
    with pytest.raises(ExportError, match=r"--data FOLDER"):
        export_folder(network, out, ["onnx", "onnx-int8"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        "model.onnx": b"the run's own",
        "model-int8.onnx": b"the run's own",
    }
    (int8,) = export_folder(vit, out, ["onnx-int8"])
    assert int8["file"] == str(out / "model-int8.onnx") and int8["bytes"] == Path(int8["file"]).stat().st_size > 1000
    assert {file.name for file in out.iterdir()} == {"model.onnx", "model-int8.onnx"}
    assert (out / "model.onnx").read_bytes() == b"the run's own"
