import type { Container, Pod, PodSpec, Service } from "../../../agent/kube/types.ts";
import { busyboxImageName } from "../../support/images/images.ts";

/** A busybox with httpd, nc and wget; of the cluster's own registry when `E2E_IMAGE` says so. */
export const image = process.env["E2E_IMAGE"] ?? busyboxImageName;

/** A container that runs a shell script. */
export function shell(name: string, script: string, more: Partial<Container> = {}): Container {
  return { name, image, command: ["sh", "-c", script], ...more };
}

/** A pod with one container `main` that runs a script; its grace period is short so that tests are, too. */
export function podOf(name: string, script: string | Container[], spec: Partial<PodSpec> = {}): Pod {
  const containers = typeof script === "string" ? [shell("main", script)] : script;
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name },
    spec: { terminationGracePeriodSeconds: 2, ...spec, containers },
  };
}

/** A pod that runs a script once; what the script writes to standard output is the pod's result. */
export function jobOf(name: string, script: string, spec: Partial<PodSpec> = {}, main: Partial<Container> = {}): Pod {
  const wrapped = `{ ${script}\n} > /dev/termination-log`;
  return podOf(name, [shell("main", wrapped, main)], { restartPolicy: "Never", ...spec });
}

// Ends at once on SIGTERM: a shell that waits gets its trap run, PID 1 without one would ignore the signal.
const untilTerminated = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";

/** A pod that runs until it is told to end. */
export function sleeperOf(name: string, spec: Partial<PodSpec> = {}): Pod {
  return podOf(name, untilTerminated, spec);
}

/** A pod that answers HTTP on port 8080 with its name. */
export function webOf(name: string, labels: Record<string, string>): Pod {
  const serve = `mkdir /tmp/www; hostname > /tmp/www/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/www & wait`;
  const pod = podOf(name, [shell("web", serve, { ports: [{ name: "http", containerPort: 8080 }] })]);
  return { ...pod, metadata: { name, labels } };
}

export function serviceOf(name: string, spec: NonNullable<Service["spec"]>): Service {
  return { apiVersion: "v1", kind: "Service", metadata: { name }, spec };
}
