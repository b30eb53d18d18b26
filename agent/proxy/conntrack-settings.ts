import type { Logger } from "../lib/log.ts";
import { applySysctls, type Sysctls, type WantedSysctl } from "./sysctl.ts";

/**
 * Settings of connection tracking. On a machine that has just booted they do not exist before the first rule that needs connection
 * tracking loads its module, so what is missing at the start is set again once there are rules.
 */
export class ConntrackSettings {
  readonly #sysctls: Sysctls;
  readonly #log: Logger;
  #waiting: readonly WantedSysctl[];
  #told = "";

  constructor(wanted: readonly WantedSysctl[], sysctls: Sysctls, log: Logger) {
    this.#waiting = wanted;
    this.#sysctls = sysctls;
    this.#log = log;
  }

  /** Sets what was not there yet; one that failed was told and is left. */
  async apply(): Promise<void> {
    const wanted = this.#waiting;
    this.#waiting = []; // the other family's call has nothing to do meanwhile
    const { missing } = await applySysctls(wanted, this.#sysctls, this.#log);
    this.#waiting = missing;
  }

  /** As `apply`, at a time when all should be there: says what is not. */
  async applyWithRules(): Promise<void> {
    await this.apply();
    const sysctls = this.#waiting.map(({ path }) => path);
    if (sysctls.length === 0 || sysctls.join() === this.#told) return;
    this.#told = sysctls.join();
    this.#log.warn({ sysctls }, "this kernel lacks settings of connection tracking that the configuration asks for");
  }
}
