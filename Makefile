# Needs Rust (rustup reads rust-toolchain.toml), Go 1.26 and a C compiler; .ci/run installs what a bare machine lacks.
# Only e2e needs root, and only without KUBECONFIG.

# One profile for Clippy and tests, so that dependencies are built once; see [profile.ci] in Cargo.toml.
PROFILE ?= ci
CARGO ?= cargo
GO ?= go
# Folders of Go modules that hold source of ours.
GO_SOURCES := $(sort $(dir $(wildcard e2e/*/go.mod)))

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the release binary, target/release/sharded-etcd
	$(CARGO) build --locked --release --bins

.PHONY: lint
lint: lint-rust lint-go lint-shell ## formatting and lints, warnings are errors

.PHONY: lint-rust
lint-rust:
	$(CARGO) fmt --all --check
	rustfmt --check e2e/tools/protoc/src/main.rs
	$(CARGO) clippy --locked --workspace --all-targets --features sharded-etcd-e2e/cluster --profile $(PROFILE) -- -D warnings

.PHONY: lint-go
lint-go:
	@unformatted=$$(gofmt -l $(GO_SOURCES)); test -z "$$unformatted" || { echo "run gofmt -w on: $$unformatted"; exit 1; }
	@for module in $(GO_SOURCES); do \
	  [ -n "$$(cd $$module && $(GO) list ./... 2>/dev/null)" ] || continue; \
	  echo "go vet $$module"; (cd $$module && $(GO) vet ./...) || exit 1; \
	done

.PHONY: lint-shell
lint-shell:
	@for script in .ci/run $$(git ls-files '*.sh'); do bash -n $$script || exit 1; done
	@if command -v shellcheck >/dev/null; then shellcheck --external-sources --severity=warning .ci/run $$(git ls-files '*.sh'); fi

.PHONY: test
test: tools test-rust test-go ## all tests that need no root: unit, simulation, integration against real etcd, etcdctl and kube-apiserver

.PHONY: test-rust
test-rust:
	$(CARGO) build --locked --workspace --bins --profile $(PROFILE)
	$(CARGO) test --locked --workspace --profile $(PROFILE) --no-fail-fast

.PHONY: test-go
test-go:
	@etcd=$$(e2e/tools/build.sh etcd)/etcd || exit 1; \
	for module in $(GO_SOURCES); do \
	  [ -n "$$(cd $$module && $(GO) list ./... 2>/dev/null)" ] || continue; \
	  (cd $$module && ETCD=$$etcd $(GO) test ./...) || exit 1; \
	done

.PHONY: test-kube
test-kube: tools ## of the tests, those with a real kube-apiserver (test targets named kube*)
	$(CARGO) build --locked --workspace --bins --profile $(PROFILE)
	$(CARGO) test --locked --workspace --profile $(PROFILE) --test 'kube*'

.PHONY: test-linear
test-linear: tools ## of the tests, the long form of the one that judges histories under kill -9; LIN_SECONDS (1800), LIN_SEED
	$(CARGO) build --locked --workspace --bins --profile $(PROFILE)
	LIN_SECONDS=$${LIN_SECONDS:-1800} $(CARGO) test --locked --workspace --profile $(PROFILE) --test linear -- --nocapture

.PHONY: test-faults
test-faults: tools ## of the tests, the long form of the one in which moves meet faults: every step, fault and process; hours. FAULT_SECONDS (10), FAULT_SEED
	$(CARGO) build --locked --workspace --bins --profile $(PROFILE)
	FAULT_CELLS=all FAULT_SECONDS=$${FAULT_SECONDS:-10} $(CARGO) test --locked --profile $(PROFILE) -p sharded-etcd-e2e --test moves -- --nocapture

.PHONY: test-stops
test-stops: ## of the tests, the long form of those that stop the operator at every call; an hour
	OPERATOR_STOPS=all $(CARGO) test --locked --workspace --profile $(PROFILE) --test scripted -- stops

.PHONY: test-crash
test-crash: ## of the tests, the long form of those that crash the engine: 100,000 seeds, 2,000 kills; hours, optimised
	ENGINE_CRASH_SEEDS=100000 $(CARGO) test --locked --release -p sharded-etcd-engine --lib -- crash_tests --nocapture
	ENGINE_KILL_ROUNDS=2000 $(CARGO) test --locked --release -p sharded-etcd-engine --test it -- kill --nocapture
	ENGINE_KILL_ROUNDS=2000 $(CARGO) test --locked --release -p sharded-etcd-app --test engine_files -- kill --nocapture

.PHONY: test-sim
test-sim: ## of the tests, the long form of the simulation: a million seeds, optimised; hours. SIM_SEED=N shows one, SIM_FIRST, SIM_SEEDS choose
	SIM_SEEDS=$${SIM_SEEDS:-1000000} $(CARGO) test --locked --release -p sharded-etcd-sim --test sim -- --nocapture $(if $(SIM_SEED),one_seed,many_seeds)

.PHONY: e2e
e2e: ## the tests on a whole Kubernetes cluster: that of KUBECONFIG, or one built for the run (needs root) and removed
	@PROFILE=$(PROFILE) CARGO=$(CARGO) e2e/run.sh $(E2E)

.PHONY: images
images: ## the images that e2e runs, as files for docker load or ctr images import, in target/images
	@PROFILE=$(PROFILE) e2e/image/build.sh target/images

.PHONY: tools
tools: ## etcd, etcdctl, kube-apiserver, kubectl and the Go workload, unless this machine has them; 10 minutes on two cores
	@e2e/tools/build.sh etcd workload kube
