# Installs a release from its parcel into the current folder. Arguments: PYTHON REQUIREMENT
set -eu
python=$1 requirement=$2
rm -rf venv
"$python" -m venv venv
set -- --quiet --disable-pip-version-check --no-input --constraint parcel/constraints.txt
if ls parcel/wheels/*.whl >/dev/null 2>&1; then
    # The folder has everything: no network is needed.
    set -- "$@" --no-index --find-links parcel/wheels
fi
if [ -n "$requirement" ]; then
    set -- "$@" "$requirement"
else
    set -- "$@" parcel/*.whl
fi
venv/bin/python -m pip install "$@"
venv/bin/victoria-runner --version
rm -rf parcel
: > .complete
