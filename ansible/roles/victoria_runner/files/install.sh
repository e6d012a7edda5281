# Installs a release from its parcel into the current folder. Arguments: PYTHON REQUIREMENT
set -eu
python=$1 requirement=$2
rm -rf venv
"$python" -m venv venv
set -- --quiet --disable-pip-version-check --no-input
if ls parcel/wheels/*.whl >/dev/null 2>&1; then
    # The folder has everything: no network is needed.
    set -- "$@" --no-index --find-links parcel/wheels
fi
if grep -q -e '--hash=' parcel/constraints.txt; then
    # Exactly the files that are listed, and only wheels: nothing of an index is executed as root.
    venv/bin/python -m pip install "$@" --only-binary :all: --require-hashes --requirement parcel/constraints.txt
    set -- "$@" --no-deps
else
    set -- "$@" --constraint parcel/constraints.txt
fi
if [ -n "$requirement" ]; then
    set -- "$@" "$requirement"
else
    set -- "$@" parcel/*.whl
fi
venv/bin/python -m pip install "$@"
venv/bin/python -m pip check >&2
# Python looks for its packages by its version, and an upgrade of the distribution brings another: so it finds
# these, all of them pure Python, until the next play installs a release for it.
packages=$(basename venv/lib/python3.*)
for minor in $(seq 10 30); do
    [ -e "venv/lib/python3.$minor" ] || ln -s "$packages" "venv/lib/python3.$minor"
done
venv/bin/victoria-runner --version
rm -rf parcel
: > .complete
