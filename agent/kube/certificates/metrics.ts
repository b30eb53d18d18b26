import type { Clock } from "../../lib/clock.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { CertificateObserver } from "./manager.ts";
import type { CertificateSource } from "./port.ts";

// A minute to four years: how old certificates are when they are replaced. The reference's buckets.
const rotationBuckets = [60, 3_600, 14_400, 86_400, 604_800, 2_592_000, 7_776_000, 15_552_000, 31_104_000, 124_416_000];

/** Registers the metrics of the client certificate. */
export function clientCertificateMetrics(
  registry: MetricsRegistry,
  source: () => CertificateSource,
  clock: Clock,
): CertificateObserver {
  const help = "Seconds until the client certificate expires; +Inf if there is no valid one.";
  ttlGauge(registry, "kubelet_certificate_manager_client_ttl_seconds", help, source, clock);
  const failures = registry.counter(
    "kubelet_certificate_manager_client_expiration_renew_errors",
    "Attempts to renew the client certificate that failed.",
  );
  return { renewFailed: () => failures.inc({}), rotated: () => {} };
}

/** Registers the metrics of a serving certificate that the API server's signer issues. */
export function servingCertificateMetrics(
  registry: MetricsRegistry,
  source: () => CertificateSource,
  clock: Clock,
): CertificateObserver {
  const help = "Seconds until the serving certificate expires; +Inf if there is no valid one.";
  ttlGauge(registry, "kubelet_certificate_manager_server_ttl_seconds", help, source, clock);
  const ages = registry.histogram(
    "kubelet_certificate_manager_server_rotation_seconds",
    "Age of serving certificates when they were replaced, in seconds.",
    rotationBuckets,
  );
  const failures = registry.counter(
    "kubelet_server_expiration_renew_errors",
    "Attempts to renew the serving certificate that failed.",
  );
  return { renewFailed: () => failures.inc({}), rotated: (seconds) => ages.observe({}, seconds) };
}

function ttlGauge(
  registry: MetricsRegistry,
  name: string,
  help: string,
  source: () => CertificateSource,
  clock: Clock,
): void {
  registry.collect(name, () => {
    const pair = source().current();
    const value = pair === undefined ? Number.POSITIVE_INFINITY : (pair.notAfterMs - clock.now()) / 1_000;
    return [{ name, help, type: "gauge", samples: [{ labels: {}, value }] }];
  });
}
