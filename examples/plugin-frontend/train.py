"""Train a scikit-learn pipeline and write it as iris.joblib."""

from __future__ import annotations

import joblib
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

data, target = load_iris(return_X_y=True)
model = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=20, max_depth=5, random_state=0))
joblib.dump(model.fit(data, target), "iris.joblib")
