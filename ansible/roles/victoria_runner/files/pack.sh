# Packs everything that a host needs to install a release. Arguments:
# PARCEL PYTHON PACKAGE WHEELS CONSTRAINTS
set -eu
parcel=$1 python=$2 package=$3 wheels=$4 constraints=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/parcel/wheels" "$(dirname "$parcel")"
if [ -d "$package" ]; then
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
        --wheel-dir "$work/parcel" "$package"
elif [ -n "$package" ]; then
    cp "$package" "$work/parcel/"
fi
if [ -n "$wheels" ]; then
    cp "$wheels"/*.whl "$work/parcel/wheels/"
fi
if [ -n "$constraints" ]; then
    cp "$constraints" "$work/parcel/constraints.txt"
else
    : > "$work/parcel/constraints.txt"
fi
tar -C "$work" -cf "$work/parcel.tar" parcel
mv "$work/parcel.tar" "$parcel"
