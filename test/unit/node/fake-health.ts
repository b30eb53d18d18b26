import type { RuntimeHealth, RuntimeHealthState } from "../../../agent/node/runtime-health.ts";

/** Health as the test says. */
export class FakeHealth implements RuntimeHealth {
  state: RuntimeHealthState;
  readonly #listeners = new Set<() => void>();
  constructor(state: RuntimeHealthState) {
    this.state = state;
  }
  isRuntimeReady = () => true;
  isNetworkReady = () => true;
  subscribe = (listener: () => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
  wake = () => {};
  run = async () => {};
  set(state: RuntimeHealthState): void {
    this.state = state;
    for (const listener of this.#listeners) listener();
  }
}
