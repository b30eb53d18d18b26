import type { Logger } from "../../lib/log.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { PluginHandler, PluginInfo } from "../../plugins/port.ts";
import { abortable } from "../../lib/abortable.ts";
import { awaiting } from "../awaits.ts";
import type { OpenCSIClient, OwnedCSIClient } from "./client.ts";
import type { CSINodeEntries } from "./csi-node.ts";
import { type CSIDriverClient, type CSIDrivers, CSIError } from "./port.ts";
import { compareVersions, type CSIVersion, highestVersion } from "./versions.ts";

export interface CSIDriversOptions {
  /** Where the cluster is told about drivers; undefined without an API server. */
  csiNode: Pick<CSINodeEntries, "set" | "remove"> | undefined;
  log: Logger;
  /** How to talk to drivers, see client.ts. */
  open: OpenCSIClient;
}

/** The registered drivers, and what registers them. */
export interface OwnedCSIDrivers extends CSIDrivers {
  /** For plugins of type CSIPlugin. */
  readonly handler: PluginHandler;
  /** Names of drivers that are in use now. */
  names(): string[];
  /** Closes all connections. The cluster is told nothing: the drivers are still there. */
  close(): void;
}

interface Registered {
  readonly plugin: PluginInfo;
  readonly version: CSIVersion;
  readonly client: OwnedCSIClient;
  /** False until the driver has said who the node is to it. */
  isInUse: boolean;
}

/** Makes the table of drivers, empty. */
export function createCSIDrivers({ csiNode, log, open }: CSIDriversOptions): OwnedCSIDrivers {
  const drivers = new Map<string, Registered>();
  const listeners = new Set<(driver: string) => void>();
  const tell = (driver: string) => {
    for (const listener of [...listeners]) listener(driver);
  };

  const handler: PluginHandler = {
    register: async (plugin, signal) => {
      const { name, endpoint, supportedVersions } = plugin;
      const version = highestVersion(name, supportedVersions);
      refuseSecond(name, version, drivers.get(name));
      const client = await open(name, endpoint);
      const before = drivers.get(name); // may have come while this one was opened
      try {
        refuseSecond(name, version, before);
      } catch (err) {
        client.close();
        throw err;
      }
      before?.client.close();
      const registered: Registered = { plugin, version, client, isInUse: false };
      drivers.set(name, registered);
      const info = await client.nodeGetInfo({ signal });
      signal.throwIfAborted();
      registered.isInUse = true;
      // Volumes need the driver, not the cluster's knowledge of it: they need not wait for the API server.
      tell(name);
      if (csiNode !== undefined) await abortable(csiNode.set(name, info), signal);
    },
    deregister: async (plugin) => {
      const { name } = plugin;
      const registered = drivers.get(name);
      if (registered?.plugin !== plugin) return; // refused, or replaced by a newer one
      drivers.delete(name);
      registered.client.close();
      tell(name);
      csiNode?.remove(name);
    },
  };

  return {
    handler,
    names: () => [...drivers].flatMap(([name, { isInUse }]) => (isInUse ? [name] : [])),
    client: (driver): CSIDriverClient => {
      const registered = drivers.get(driver);
      if (registered?.isInUse === true) return registered.client;
      const message = `driver name ${driver} not found in the list of registered CSI drivers`;
      throw new CSIError("Unavailable", message, { status: undefined, isFinal: false, ...awaiting("driver") });
    },
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    close: () => {
      for (const [name, { client }] of drivers) {
        try {
          client.close();
        } catch (err) {
          log.debug({ driver: name, err: messageOf(err) }, "a connection to a CSI driver did not close");
        }
      }
      drivers.clear();
    },
  };
}

/** A driver may be there twice while it is being upgraded, and then the higher version takes over. */
function refuseSecond(name: string, version: CSIVersion, existing: Registered | undefined): void {
  if (existing === undefined || compareVersions(existing.version, version) < 0) return;
  const { plugin } = existing;
  const has = existing.version.join(".");
  throw new AgentError(
    "AlreadyExists",
    `CSI driver ${name} is registered already, with CSI ${has} at ${plugin.endpoint}: remove that one first`,
  );
}
