"""metrics.csv grows by rows and columns, and forgets what a resumed run does again."""

from flowdiff import registry
from flowdiff.loggers import MetricsCSV


def test_rows_columns_and_truncation(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    csv.log_metrics({"train_loss": 0.5, "epoch": 0}, 10)
    csv.log_metrics({"train_loss": 0.4, "val_loss": 0.6}, 20)
    csv.log_metrics({"epoch": 0}, 25)  # nothing measured: no row
    csv.log_metrics({"train_loss": 0.3}, 30)
    assert csv.path.read_text() == "step,train_loss,val_loss\n10,0.5,\n20,0.4,0.6\n30,0.3,\n"
    again = MetricsCSV(tmp_path / "metrics.csv")
    again.truncate(20)
    again.log_metrics({"val_loss": 0.2}, 40)
    assert again.rows() == [
        {"step": "10", "train_loss": "0.5", "val_loss": ""},
        {"step": "20", "train_loss": "0.4", "val_loss": "0.6"},
        {"step": "40", "train_loss": "", "val_loss": "0.2"},
    ]


def test_wandb_is_online_only_with_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    auto = registry.build("logger", "wandb")
    assert auto._resolved_mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert auto._resolved_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert auto._resolved_mode() == "online"
    assert registry.build("logger", "wandb", mode="disabled")._resolved_mode() == "disabled"
