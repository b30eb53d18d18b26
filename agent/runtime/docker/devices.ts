import type Docker from "dockerode";
import { AgentError } from "../../lib/errors.ts";
import type { ContainerConfig } from "../port.ts";
import type { DaemonInfo } from "./daemon.ts";

/**
 * Devices of a container in Docker's words. Throws Unimplemented for CDI devices where the daemon gives none. Pure.
 *
 * A privileged container sees all devices of the node under their own names; those that are to have another name there are
 * added all the same.
 */
export function dockerDevices(
  what: string,
  { devices, cdiDevices }: Pick<ContainerConfig, "devices" | "cdiDevices">,
  daemon: Pick<DaemonInfo, "hasCDI" | "version">,
): Pick<Docker.HostConfig, "Devices" | "DeviceRequests"> {
  const [first] = cdiDevices;
  if (first !== undefined && !daemon.hasCDI) {
    throw new AgentError(
      "Unimplemented",
      `${what}: CDI device "${first}" needs Docker Engine 25 or later with the feature "cdi" on; this is ${daemon.version}`,
    );
  }
  return {
    ...(devices.length === 0
      ? {}
      : {
          Devices: devices.map(({ hostPath, containerPath, permissions }) => ({
            PathOnHost: hostPath,
            PathInContainer: containerPath,
            CgroupPermissions: permissions,
          })),
        }),
    ...(first === undefined ? {} : { DeviceRequests: [{ Driver: "cdi", DeviceIDs: [...cdiDevices] }] }),
  };
}
