import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { ContainerConfig, PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { plainContainer, plainSandbox, plainSecurity } from "./plain-configs.ts";

let pods = 0;

/** A sandbox config as a worker would build it for a plain pod; each call is another pod. Its log directory is made. */
export async function sandboxConfig(
  dir: string,
  cgroupRoot: string,
  change: Partial<PodSandboxConfig> = {},
): Promise<PodSandboxConfig> {
  pods += 1;
  const name = change.name ?? `pod-${pods}`;
  const namespace = change.namespace ?? "default";
  const uid = change.uid ?? `uid-${process.pid}-${pods}`;
  const config: PodSandboxConfig = {
    ...plainSandbox(),
    name,
    namespace,
    uid,
    hostname: name,
    logDirectory: join(dir, "pods", `${namespace}_${name}_${uid}`),
    labels: {
      "io.kubernetes.pod.name": name,
      "io.kubernetes.pod.namespace": namespace,
      "io.kubernetes.pod.uid": uid,
    },
    cgroupParent: `${cgroupRoot}/pod${uid}`,
    ...change,
  };
  await mkdir(config.logDirectory, { recursive: true });
  return config;
}

/** A container config for a plain container of that sandbox. The directory of its log is made. */
export async function containerConfig(
  sandbox: PodSandboxConfig,
  name: string,
  imageRef: string,
  command: string[],
  change: Partial<ContainerConfig> = {},
): Promise<ContainerConfig> {
  const attempt = change.attempt ?? 0;
  await mkdir(join(sandbox.logDirectory, name), { recursive: true });
  return {
    ...plainContainer(),
    name,
    attempt,
    imageRef,
    userSpecifiedImage: imageRef,
    command,
    labels: { ...sandbox.labels, "io.kubernetes.container.name": name },
    logPath: `${name}/${attempt}.log`,
    securityContext: plainSecurity({ namespaceOptions: sandbox.securityContext.namespaceOptions }),
    ...change,
  };
}
