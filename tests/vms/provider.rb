# A Vagrant provider whose machines are those of lab.sh, so that the real `vagrant` runs the project's own Vagrantfile
# unmodified. Addresses, forwarded ports and memory come from the Vagrantfile's settings for VirtualBox.
module Lab
  SCRIPT = File.join(__dir__, "lab.sh")

  def self.run(*arguments)
    result = Vagrant::Util::Subprocess.execute(SCRIPT, *arguments.map(&:to_s))
    return if result.exit_code.zero?

    raise "lab.sh #{arguments.join(' ')}: #{result.stderr}#{result.stdout}"
  end

  # The settings of one machine in the Vagrantfile.
  class Wishes
    def initialize(machine)
      @machine = machine
    end

    def address
      networks(:private_network).first[:ip]
    end

    # The port of this computer that is forwarded to the machine's sshd.
    def ssh_port
      2200 + address.split(".").last.to_i
    end

    def forwards
      forwarded = networks(:forwarded_port).reject { |port| port[:id] == "ssh" || port[:disabled] }
      forwarded.map { |port| "#{port[:host_ip] || '0.0.0.0'}:#{port[:host]}:#{port[:guest]}" } +
        ["127.0.0.1:#{ssh_port}:22"]
    end

    def megabytes
      virtualbox = @machine.config.vm.get_provider_config(:virtualbox)
      memory = virtualbox.customizations.map(&:last).select { |words| words[2] == "--memory" }
      memory.last&.last or raise "the Vagrantfile has no memory for #{@machine.name}"
    end

    private

    def networks(kind)
      @machine.config.vm.networks.select { |type, _| type == kind }.map(&:last)
    end
  end

  class Plugin < Vagrant.plugin("2")
    name "machines of the VM test"
    provider(:lab, box_optional: true, parallel: false) { Provider }
    config(:lab, :provider) { Config }
  end

  class Config < Vagrant.plugin("2", :config)
  end

  class Provider < Vagrant.plugin("2", :provider)
    B = Vagrant::Action::Builtin
    # A one-way folder is copied at `up` and `reload`, and not at `provision`, as VirtualBox and libvirt do it.
    STARTING = [B::ConfigValidate, B::Provision, B::SyncedFolders, B::SetHostname].freeze

    def self.usable?(*)
      true
    end

    def initialize(machine)
      @machine = machine
    end

    def action(name)
      case name
      when :up then steps(*STARTING, Boot, WAITING)
      when :reload then steps(Stop, *STARTING, Boot, WAITING)
      when :halt then steps(Stop)
      when :provision then steps(B::ConfigValidate, B::Provision)
      when :destroy then steps(Destroy)
      when :ssh then steps(B::SSHExec)
      when :ssh_run then steps(B::SSHRun)
      end
    end

    def ssh_info
      @machine.id && { host: "127.0.0.1", port: Wishes.new(@machine).ssh_port, username: "vagrant" }
    end

    def state
      state = if @machine.id.nil? then :not_created
              elsif running? then :running
              else :poweroff
              end
      Vagrant::MachineState.new(state, state.to_s, state.to_s)
    end

    private

    WAITING = [B::WaitForCommunicator, [:starting, :running]].freeze

    def steps(*steps)
      Vagrant::Action::Builder.new.tap { |builder| steps.each { |step| builder.use(*step) } }
    end

    def running?
      pid = File.read(File.join(ENV.fetch("VMLAB"), "machines", @machine.name.to_s, "pid")).strip
      File.exist?("/proc/#{pid}")
    rescue Errno::ENOENT
      false
    end
  end

  class Boot
    def initialize(app, _env)
      @app = app
    end

    def call(env)
      machine = env[:machine]
      if machine.id.nil?
        wishes = Wishes.new(machine)
        env[:ui].info("#{wishes.address}, #{wishes.megabytes} MB, ports #{wishes.forwards.join(' ')}")
        Lab.run("up", machine.name, wishes.address, wishes.megabytes, wishes.forwards.join(","))
        machine.id = "lab-#{machine.name}"
      elsif machine.state.id != :running
        Lab.run("start", machine.name)
      end
      @app.call(env)
    end
  end

  class Stop
    def initialize(app, _env)
      @app = app
    end

    def call(env)
      Lab.run("halt", env[:machine].name) if env[:machine].state.id == :running
      @app.call(env)
    end
  end

  class Destroy
    def initialize(app, _env)
      @app = app
    end

    def call(env)
      if env[:machine].id
        Lab.run("destroy", env[:machine].name)
        env[:machine].id = nil
      end
      @app.call(env)
    end
  end
end
