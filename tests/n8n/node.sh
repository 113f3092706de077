#!/usr/bin/env bash
# Lints and builds the node with n8n's own tool, from the versions of its lock file.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$(.ci/node):$PATH
cd tests/n8n/node
npm ci --loglevel=error --ignore-scripts >&2
npm run --silent lint >&2
npm run --silent build >build.log 2>&1 || { cat build.log >&2; exit 1; }
node --test test/*.mjs >&2
