/**
 * Plugins that run beside the agent and extend it: CSI drivers, device plugins, DRA drivers. Each puts a socket into
 * ROOT/plugins_registry; the agent asks there who it is and hands it to the handler of its type.
 */

/** The types of plugins that Kubernetes has. */
export type PluginType = "CSIPlugin" | "DevicePlugin" | "DRAPlugin";

/** What a plugin says of itself. */
export interface PluginInfo {
  readonly name: string;
  /** Path of the socket on which it serves its own interface; that of its registration unless it names another. */
  readonly endpoint: string;
  /** As the plugin gave them: may be empty, and need not be versions. */
  readonly supportedVersions: readonly string[];
}

/**
 * What is done with plugins of one type. Each `register` is followed by one `deregister` with the very same object, whether it
 * succeeded or not, before anything else is done about that socket; only when the agent stops there is none. Calls for different
 * sockets may overlap, also if the plugins bear the same name.
 */
export interface PluginHandler {
  /**
   * Takes the plugin into use. Rejects if that cannot be: the plugin is told the message, and asked again later. Aborts when the
   * socket has gone or the agent stops.
   */
  register(plugin: PluginInfo, signal: AbortSignal): Promise<void>;
  /** The plugin's socket has gone or was made anew, or its registration came to nothing. */
  deregister(plugin: PluginInfo): Promise<void>;
}
