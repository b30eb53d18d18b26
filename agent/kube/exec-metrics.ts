import type { X509Certificate } from "node:crypto";
import type { Clock } from "../lib/clock.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { parseCertificates } from "./certificates/pair.ts";

/** What a run of an exec credential plugin came to, in client-go's words. */
export type ExecCallStatus = "no_error" | "plugin_execution_error" | "plugin_not_found_error";

/** Exec credential plugins of kubeconfigs. */
export interface ExecPluginMetrics {
  /** @param code the plugin's exit code; -1 if it was killed, 1 if it could not be started */
  called(code: number, status: ExecCallStatus): void;
  /**
   * A plugin gave a credential.
   *
   * @param access of which server and user: one expiry is kept for each
   * @param now    PEM of its client certificate; absent: a token alone
   * @param before PEM of the one that it had given before
   */
  issued(access: object, now: Buffer | undefined, before: Buffer | undefined): void;
}

// Ten minutes to four years, in seconds; client-go's.
const rotationBuckets = [
  600, 1_800, 3_600, 14_400, 86_400, 604_800, 2_592_000, 7_776_000, 15_552_000, 31_104_000, 124_416_000,
];

/** Registers `rest_client_exec_plugin_*`. */
export function createExecPluginMetrics(registry: MetricsRegistry, clock: Clock): ExecPluginMetrics {
  const calls = registry.counter(
    "rest_client_exec_plugin_call_total",
    "Runs of exec credential plugins, by exit code and by what they came to.",
    ["code", "call_status"],
  );
  const ages = registry.histogram(
    "rest_client_exec_plugin_certificate_rotation_age",
    "Age of exec credential plugins' client certificates when others took their place, in seconds.",
    rotationBuckets,
  );
  /** Unix ms at which the certificate of each access expires. */
  const expiries = new Map<object, number>();
  registry.gaugeOf(
    "rest_client_exec_plugin_ttl_seconds",
    "Seconds until the first client certificate of an exec credential plugin expires; +Inf if there is none.",
    () => (Math.min(...expiries.values()) - clock.now()) / 1_000, // of nothing: +Inf
  );
  return {
    called: (code, status) => calls.inc({ code: String(code), call_status: status }),
    issued: (access, now, before) => {
      const isRotated = before !== undefined && (now === undefined || !now.equals(before));
      const old = isRotated ? certificateOf(before) : undefined;
      if (old !== undefined) ages.observe({}, (clock.now() - old.validFromDate.getTime()) / 1_000);
      const expiresAtMs = certificateOf(now)?.validToDate.getTime();
      if (expiresAtMs === undefined) expiries.delete(access);
      else expiries.set(access, expiresAtMs);
    },
  };
}

function certificateOf(pem: Buffer | undefined): X509Certificate | undefined {
  try {
    return pem === undefined ? undefined : parseCertificates(pem.toString("latin1"))[0];
  } catch {
    return undefined; // whoever uses it says what is wrong with it
  }
}
